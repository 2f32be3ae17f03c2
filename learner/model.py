"""The trained model: a checkpoint's own Qwen3-VL, parts of it frozen, adapters in it, a chunked head on top.

The one file of the learner that knows how transformers and peft name things.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import peft
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration
from transformers.utils.logging import disable_progress_bar

from learner.attention import PER_SEGMENT, implementation
from learner.collate import Batch, Vision
from learner.lm_head import SupervisedHead
from learner.losses import LossScales
from learner.settings import LearnerSettings, TunerSettings
from protocol.errors import ConfigError
from protocol.vocab import CoordIds

Part = Literal["language", "aligner", "vision"]
EMBEDDINGS = ("embed_tokens", "lm_head")
ALIGNER = re.compile(r"\.visual\.(merger|deepstack_merger_list)\.")


def part_of(name: str) -> Part:
    """Which of the three learning rates and freeze switches a parameter or module answers to."""
    dotted = f".{name}."
    if ALIGNER.search(dotted):
        return "aligner"
    return "vision" if ".visual." in dotted else "language"


class HeadOutput(NamedTuple):
    """Loss of one forward, scaled for the step, and its unscaled parts. A tuple, because ZeRO-3 looks into it."""

    loss: Tensor
    """Scalar with a graph."""
    ce: Tensor
    """[N] detached."""
    coord: Tensor
    """[C] detached."""


class Policy(nn.Module):  # type: ignore[misc]
    """Batch in, scaled loss out: everything that DeepSpeed must see happens in `forward`."""

    def __init__(
        self,
        core: Qwen3VLForConditionalGeneration,
        coord_ids: CoordIds,
        settings: LearnerSettings,
        adapter: peft.PeftModel | None = None,
    ) -> None:
        super().__init__()
        self.core = core
        self._adapter = () if adapter is None else (adapter,)
        self.head = SupervisedHead(_plain_head(core.lm_head), coord_ids.ids, settings.loss)

    @property
    def adapter(self) -> peft.PeftModel | None:
        """peft's view of `core`, where there are adapters in it; not a submodule, so names stay the model's own."""
        return self._adapter[0] if self._adapter else None

    def forward(self, batch: Batch, scales: LossScales) -> HeadOutput:
        hidden = self.hidden(batch)
        rows = hidden.flatten(0, 1)[batch.supervised_rows()]
        return HeadOutput(*self.head(rows, batch.ce_ids(), batch.coord_bins, scales))

    def hidden(self, batch: Batch) -> Tensor:
        """Last hidden states [B, T, H]."""
        output = self.core.model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            pixel_values=batch.pixel_values,
            image_grid_thw=batch.grid_thw,
            use_cache=False,
            **self._attention_options(batch),
        )
        return output.last_hidden_state

    def _attention_options(self, batch: Batch) -> dict[str, Any]:
        own = self.core.config.text_config._attn_implementation == PER_SEGMENT
        return {"segment_lengths": batch.segment_lengths} if own else {}

    def rope_index(self, ids: Tensor, grid_thw: Tensor) -> Tensor:
        """Rotary positions [3, L] of one segment alone, by the model's own rule."""
        config = self.core.config
        types = (ids == config.image_token_id).int()
        positions, _ = self.core.model.get_rope_index(ids[None], types[None], image_grid_thw=grid_thw)
        return positions[:, 0]

    def smallest_input(self) -> tuple[list[int], Vision]:
        """Ids and pixels of the shortest forward that touches every module: one merged image token and its frame."""
        config, vision = self.core.config, self.core.config.vision_config
        merge = vision.spatial_merge_size
        patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        ids = [config.vision_start_token_id, config.image_token_id, config.vision_end_token_id]
        return ids, Vision(torch.zeros(merge * merge, patch), torch.tensor([[1, merge, merge]]))


def _plain_head(head: nn.Module) -> nn.Linear:
    """The linear layer that makes the logits, frozen or trained whole (modules_to_save)."""
    if isinstance(head, peft.utils.ModulesToSaveWrapper):
        head = head.modules_to_save[head.active_adapters[0]]
    assert type(head) is nn.Linear, f"_adapter_targets lets no adapter into the head, got {type(head).__name__}"
    assert head.bias is None, "Qwen3-VL's head has no bias"
    return head


def build_policy(settings: LearnerSettings) -> Policy:
    """Loads the checkpoint, freezes, adds adapters. The same seed gives the same adapters on every rank."""
    torch.manual_seed(settings.seed)
    disable_progress_bar()
    core = Qwen3VLForConditionalGeneration.from_pretrained(
        settings.model,
        dtype=getattr(torch, settings.compute_dtype),
        attn_implementation=implementation(settings.attn_impl),
        use_safetensors=True,  # no other format: pickled weights would run what they hold
    )
    coord_ids = CoordIds.lookup(AutoTokenizer.from_pretrained(settings.model).get_vocab())
    adapter = None
    if settings.tuner.kind == "lora":
        adapter = _add_adapters(core, settings.tuner)
    else:
        _freeze(core, settings.tuner)
    if settings.gradient_checkpointing:
        core.gradient_checkpointing_enable({"use_reentrant": False})
    if not any(parameter.requires_grad for parameter in core.parameters()):
        raise ConfigError("tuner: nothing is trained; leave one of freeze_llm, freeze_vit, freeze_aligner false")
    core.train()  # transformers loads for inference, where nothing is dropped or recomputed
    return Policy(core, coord_ids, settings, adapter)


def _frozen_parts(tuner: TunerSettings) -> set[Part]:
    switches: dict[Part, bool] = {
        "language": tuner.freeze_llm,
        "vision": tuner.freeze_vit,
        "aligner": tuner.freeze_aligner,
    }
    return {part for part, frozen in switches.items() if frozen}


def _freeze(core: nn.Module, tuner: TunerSettings) -> None:
    frozen = _frozen_parts(tuner)
    for name, parameter in core.named_parameters():
        parameter.requires_grad_(part_of(name) not in frozen)


def _add_adapters(core: Qwen3VLForConditionalGeneration, tuner: TunerSettings) -> peft.PeftModel:
    """Puts adapters into `core` in place."""
    targets = _adapter_targets(core, tuner)
    shared = core.config.tie_word_embeddings and any(name.endswith(EMBEDDINGS) for name in tuner.modules_to_save)
    config = peft.LoraConfig(
        r=tuner.rank,
        lora_alpha=tuner.alpha,
        lora_dropout=tuner.dropout,
        use_dora=tuner.use_dora,
        use_rslora=tuner.use_rslora,
        target_modules=targets,
        modules_to_save=list(tuner.modules_to_save) or None,
        ensure_weight_tying=shared,  # else head and embedding drift apart, and no tied checkpoint can hold both
    )
    return peft.get_peft_model(core, config)


def _adapter_targets(core: nn.Module, tuner: TunerSettings) -> list[str]:
    """Whole names of the layers that get an adapter: those asked for, in parts that are not frozen."""
    frozen = _frozen_parts(tuner)
    names = [
        name
        for name, module in core.named_modules()
        if isinstance(module, nn.Linear) and part_of(name) not in frozen and _is_target(name, tuner.target_modules)
    ]
    if "lm_head" in names:
        raise ConfigError(
            f"tuner.target_modules: {tuner.target_modules!r} selects lm_head, whose logits are computed in chunks "
            "from a plain weight; take it out, or put it into tuner.modules_to_save"
        )
    if not names:
        raise ConfigError(
            f"tuner.target_modules: {tuner.target_modules!r} selects no linear layer outside the frozen parts "
            f"{sorted(frozen)}; name suffixes such as q_proj, or all-linear"
        )
    return names


def _is_target(name: str, wanted: tuple[str, ...] | str) -> bool:
    if wanted == "all-linear":
        return name != "lm_head"
    if isinstance(wanted, str):
        return re.fullmatch(wanted, name) is not None
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in wanted)


def parameter_groups(policy: Policy, settings: LearnerSettings) -> list[dict[str, Any]]:
    """Groups (part x decayed or not) for the optimizer; each has `params`, `lr`, `weight_decay` and a `name`.

    Vectors (norms, biases, DoRA magnitudes) are not decayed.
    """
    optimizer = settings.optimizer
    rates: dict[Part, float] = {
        "language": optimizer.learning_rate,
        "aligner": optimizer.learning_rate if optimizer.aligner_lr is None else optimizer.aligner_lr,
        "vision": optimizer.learning_rate if optimizer.vit_lr is None else optimizer.vit_lr,
    }
    groups: dict[tuple[Part, bool], list[nn.Parameter]] = {}
    for name, parameter in trainable(policy):
        groups.setdefault((part_of(name), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rates[part],
            "weight_decay": optimizer.weight_decay if decays else 0.0,
            "name": f"{part}{'' if decays else '/no_decay'}",
        }
        for (part, decays), parameters in sorted(groups.items())
    ]


def trainable(policy: Policy) -> Iterator[tuple[str, nn.Parameter]]:
    """Named parameters that the optimizer owns, in the same order on every rank."""
    return ((name, parameter) for name, parameter in policy.named_parameters() if parameter.requires_grad)


def signature(policy: Policy, settings: LearnerSettings) -> dict[str, str]:
    """What a state on disk belongs to: a resume with another one would train other tensors with it."""
    found: dict[str, str] = {"model.torch_dtype": settings.compute_dtype}
    if policy.adapter is not None:
        found["tuner.lora_alpha"] = str(settings.tuner.alpha)
    for name, parameter in trainable(policy):
        found[name] = str(list(getattr(parameter, "ds_shape", parameter.shape)))  # ZeRO-3 leaves an empty parameter
    return found
