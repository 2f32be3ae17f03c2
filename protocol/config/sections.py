"""The runbook's smaller sections: model, template, data, tuner, deepspeed, debug."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import model_validator

from protocol.config.base import (
    AnyCase,
    Names,
    NonEmpty,
    NonNegativeInt,
    PositiveInt,
    Problem,
    Section,
    UnitFloat,
    require,
)
from protocol.errors import ConfigError


class ModelConfig(Section):
    """Which checkpoint is trained and served."""

    model: NonEmpty
    """Directory of the start checkpoint (weights, tokenizer and processor files), or its name on a model hub. A
    relative directory counts from the working directory in which the command is started, like every path of the run
    file except `extends`."""
    torch_dtype: Annotated[Literal["float32", "bfloat16"], AnyCase] = "bfloat16"
    """Dtype of the trained and the published weights. Not float16: gradients divided by a step's tokens lie below its
    range."""
    attn_impl: Annotated[Literal["sdpa", "flash_attention_2", "eager"], AnyCase] = "sdpa"
    """Attention of the learner. `flash_attention_2` needs a GPU and the flash-attn package."""


class TemplateConfig(Section):
    """The chat template and what happens to a target that does not fit."""

    template: Literal["qwen3_vl"] = "qwen3_vl"
    """Chat template family; only Qwen3-VL is built in."""
    truncation_strategy: Literal["delete", "raise"] = "delete"
    """What happens to a target longer than `global_max_length`: `delete` drops it, counts it and writes its record to
    the quarantine file, `raise` stops the run. Nothing is ever cut, so the runbook's `right` is refused."""
    max_pixels: PositiveInt | None = None
    """Largest image that is accepted, in pixels. Images are never resized at run time: a larger one is a data failure.
    None: no limit."""
    padding_side: Literal["right", "left"] = "right"
    """Accepted for runbook files; without effect, because training rows are packed without padding."""

    @model_validator(mode="before")
    @classmethod
    def _never_cuts(cls, data: Any) -> Any:
        strategy = data.get("truncation_strategy") if isinstance(data, dict) else None
        if strategy in ("right", "left", "split"):
            message = (
                f"{strategy!r} would cut targets, and a cut target teaches the model to stop early; write delete "
                "(drop, count, quarantine: the default) or raise"
            )
            require([Problem(("truncation_strategy",), message)])
        return data


class DataConfig(Section):
    """How images and records are read."""

    dataset: Names = ()
    """Accepted for runbook files; without effect: data come from `custom.train_jsonl` and `custom.val_jsonl`."""
    val_dataset: Names = ()
    """Accepted for runbook files; without effect, like `dataset`."""
    dataset_shuffle: bool = True
    """Shuffle the records anew in every epoch; false keeps the file's order."""
    dataloader_num_workers: NonNegativeInt = 2
    """Threads per learner rank that read images ahead of the forward pass; 0 reads in the step itself."""
    dataloader_prefetch_factor: PositiveInt | None = None
    """Accepted for runbook files; without effect: the images of the next pack are read ahead."""
    dataloader_pin_memory: bool = True
    """Accepted for runbook files; without effect: a pack's image tensors are copied from where they are."""
    dataset_num_proc: PositiveInt | None = None
    """Accepted for runbook files; without effect: records are read from disk by line, never preprocessed."""


class TunerConfig(Section):
    """Which parameters are trained."""

    train_type: Annotated[Literal["full", "lora"], AnyCase] = "full"
    """`full` trains every parameter that is not frozen, `lora` an adapter."""
    lora_rank: PositiveInt = 8
    """Rank of the adapter."""
    lora_alpha: PositiveInt = 32
    """Scale of the adapter: its product counts `lora_alpha / lora_rank` times."""
    lora_dropout: UnitFloat = 0.05
    """Dropout before the adapter, 0..1."""
    target_modules: Names = ("all-linear",)
    """Modules that get an adapter, by suffix; `all-linear` stands for every linear layer of the parts that are not
    frozen."""
    target_regex: str | None = None
    """Regular expression over full module names; wins over `target_modules`."""
    use_dora: bool = False
    """Train magnitudes too (weight-decomposed adapters)."""
    modules_to_save: Names = ()
    """Modules that are trained and stored whole beside the adapter."""
    freeze_llm: bool = False
    """Keep the language model fixed."""
    freeze_vit: bool = True
    """Keep the vision encoder fixed."""
    freeze_aligner: bool = False
    """Keep the vision mergers fixed."""

    @model_validator(mode="after")
    def _something_is_trained(self) -> TunerConfig:
        if self.train_type == "full" and self.freeze_llm and self.freeze_vit and self.freeze_aligner:
            message = "llm, vit and aligner are all frozen, so nothing would be trained; set one of them to false"
            require([Problem(("freeze_llm", "freeze_vit", "freeze_aligner"), message)])
        return self

    @model_validator(mode="after")
    def _pattern_compiles(self) -> TunerConfig:
        try:
            re.compile(self.target_regex or "")
        except re.error as error:
            require([Problem(("target_regex",), f"is no regular expression ({error}); correct it")])
        return self


ZERO_STAGES = {f"zero{stage}": stage for stage in range(4)}


class DeepSpeedConfig(Section):
    """The learner's DeepSpeed settings. The learner always runs on DeepSpeed; `enabled: false` means ZeRO stage 0."""

    enabled: bool = True
    """Use `config`; false runs plain data parallelism (ZeRO stage 0)."""
    config: str | dict[str, Any] | None = "zero2"
    """`zero0` .. `zero3`, a path to a DeepSpeed JSON file, or the mapping itself. Batch sizes, precision, clipping and
    optimizer come from `training` and may not be repeated there; `auto` may. `offload_optimizer` and
    `offload_param` go to the `cpu` only; the first start with one compiles DeepSpeed's kernel, which takes minutes."""

    @model_validator(mode="after")
    def _has_config(self) -> DeepSpeedConfig:
        if self.enabled and not self.config:
            message = f"is required when enabled is true, got {self.config!r}; write zero0..zero3, a path or a mapping"
            require([Problem(("config",), message)])
        return self

    def resolve(self) -> dict[str, Any]:
        """The DeepSpeed mapping; reads the file when `config` is a path.

        Raises:
            ConfigError: the file cannot be read, or the ZeRO stage is none of 0..3.
        """
        given = self._given()
        stage = (given.get("zero_optimization") or {}).get("stage", 0)
        if stage not in ZERO_STAGES.values():
            raise ConfigError(f"deepspeed.config: zero_optimization.stage is {stage!r}; write 0, 1, 2 or 3")
        return given

    def zero_stage(self) -> int:
        """0..3; reads the file when `config` is a path."""
        return int((self.resolve().get("zero_optimization") or {}).get("stage", 0))

    def offloads(self, what: Literal["optimizer", "param"]) -> bool:
        """Whether DeepSpeed keeps the optimizer, or the parameters, in host memory."""
        part = (self.resolve().get("zero_optimization") or {}).get(f"offload_{what}") or {}
        return part.get("device") == "cpu"

    def _given(self) -> dict[str, Any]:
        if not self.enabled or self.config is None:
            return {"zero_optimization": {"stage": 0}}
        if isinstance(self.config, dict):
            return self.config
        if self.config in ZERO_STAGES:
            return {"zero_optimization": {"stage": ZERO_STAGES[self.config]}}
        try:
            loaded = json.loads(Path(self.config).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"deepspeed.config: {self.config!r} is neither {', '.join(ZERO_STAGES)} nor a readable JSON file "
                f"({error}); correct the path, or write one of the names"
            ) from error
        if not isinstance(loaded, dict):
            raise ConfigError(f"deepspeed.config: {self.config} holds a {type(loaded).__name__}; write a JSON object")
        return loaded


class DebugConfig(Section):
    """A short variant of the same run file; `--debug` and `debug.enabled: true` switch it on."""

    enabled: bool = False
    """Replace output folder and sample limits by those below."""
    output_dir: NonEmpty = "runs/debug"
    """Replaces `training.output_dir`."""
    train_sample_limit: PositiveInt | None = 64
    """Replaces `custom.train_sample_limit`."""
    val_sample_limit: PositiveInt | None = 16
    """Replaces `custom.val_sample_limit`."""
