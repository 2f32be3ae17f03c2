"""The parts of a Qwen3-VL by name and size, from its config.json: what sizing counts with. No torch, no weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from protocol.config import RunConfig, TunerConfig

COORD_VOCABULARY = 152_670
"""Rows of the embedding once the 1,000 coordinate tokens are added (SPEC, part C)."""


def _preset(hidden: int, layers: int, heads: int, inner: int, tied: bool, vision: tuple[int, int, int]) -> Any:
    depth, width, vision_inner = vision
    return {
        "tie_word_embeddings": tied,
        "text_config": {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": inner,
            "vocab_size": COORD_VOCABULARY,
        },
        "vision_config": {
            "depth": depth,
            "hidden_size": width,
            "intermediate_size": vision_inner,
            "out_hidden_size": hidden,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [0, 1, 2],
        },
    }


PRESETS: Mapping[str, Any] = {
    "2B": _preset(2048, 28, 16, 6144, True, (24, 1024, 4096)),
    "4B": _preset(2560, 36, 32, 9728, True, (24, 1024, 4096)),
    "8B": _preset(4096, 36, 32, 12288, False, (27, 1152, 4304)),
}
"""Qwen3-VL's three dense sizes, as their config.json gives them."""


LANGUAGE_LAYER = re.compile(r"model\.language_model\.layers\.\d+\.")


class Part(NamedTuple):
    """One tensor group of the model: a linear layer with its bias, a norm, an embedding."""

    name: str
    num_params: int
    ins: int = 0
    """Width of a linear layer's input; 0 where an adapter cannot sit."""
    outs: int = 0


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of the language model that formulas need, and all parts."""

    source: str
    """A folder, or the name of a preset."""
    hidden: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    inner: int
    parts: tuple[Part, ...]

    @property
    def num_params(self) -> int:
        return sum(part.num_params for part in self.parts)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str) -> ModelShape:
        """From the mapping of a config.json; KeyError where it is no Qwen3-VL."""
        text, vision = config["text_config"], config["vision_config"]
        hidden, heads = text["hidden_size"], text["num_attention_heads"]
        return cls(
            source=source,
            hidden=hidden,
            num_layers=text["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=text["num_key_value_heads"],
            head_dim=text.get("head_dim", hidden // heads),
            inner=text["intermediate_size"],
            parts=(*_language(text, tied=config.get("tie_word_embeddings", True)), *_vision(vision)),
        )

    def trainable(self, tuner: TunerConfig) -> int:
        """Parameters with gradients. An adapter has `rank x (ins + outs)` per layer, DoRA `outs` magnitudes more."""
        if tuner.train_type == "full":
            return sum(part.num_params for part in self.parts if not _frozen(part.name, tuner))
        adapted = [part for part in self.parts if part.ins and _adapted(part.name, tuner)]
        magnitudes = sum(part.outs for part in adapted) if tuner.use_dora else 0
        return sum(tuner.lora_rank * (part.ins + part.outs) for part in adapted) + magnitudes + self._saved(tuner)

    def _saved(self, tuner: TunerConfig) -> int:
        """Parameters of `tuner.modules_to_save`; a tied head is the embedding."""
        names = {part.name for part in self.parts}
        wanted = ["embed_tokens" if n == "lm_head" and n not in names else n for n in tuner.modules_to_save]
        return sum(part.num_params for part in self.parts if any(part.name.endswith(name) for name in wanted))

    def adapted_outs(self, tuner: TunerConfig) -> list[int]:
        """Outputs of the layers with adapters, added up for each language layer that has any."""
        outs: dict[str, int] = {}
        if tuner.train_type == "lora":
            for part in self.parts:
                found = LANGUAGE_LAYER.match(part.name)
                if found and part.ins and _adapted(part.name, tuner):
                    outs[found[0]] = outs.get(found[0], 0) + part.outs
        return list(outs.values())

    def published(self, tuner: TunerConfig) -> int:
        """Parameters that a publish after the first one sends: the parts that training can change."""
        if tuner.train_type == "full":
            return self.trainable(tuner)
        adapted = sum(part.num_params for part in self.parts if part.ins and _adapted(part.name, tuner))
        return adapted + self._saved(tuner)


def model_shape(config: RunConfig) -> ModelShape | None:
    """The start checkpoint's; without it, that of the preset whose size stands in the name; None where none does."""
    file = Path(config.model.model) / "config.json"
    if file.is_file():
        found = json.loads(file.read_text())
        is_dense = found.get("model_type") == "qwen3_vl" and "vision_config" in found
        return ModelShape.from_config(found, str(file.parent)) if is_dense else None
    match = re.search(r"(?<![0-9])([248])B(?![a-z0-9])", config.model.model, re.IGNORECASE)
    return preset(f"{match[1]}B") if match else None


def preset(name: str) -> ModelShape:
    """One of `PRESETS`."""
    return ModelShape.from_config(PRESETS[name], f"preset {name}")


def _linear(name: str, ins: int, outs: int, *, bias: bool) -> Part:
    return Part(name, ins * outs + (outs if bias else 0), ins, outs)


def _language(text: Mapping[str, Any], *, tied: bool) -> Iterator[Part]:
    hidden, inner, heads = text["hidden_size"], text["intermediate_size"], text["num_attention_heads"]
    size = text.get("head_dim", hidden // heads)
    query, key = heads * size, text["num_key_value_heads"] * size
    bias = text.get("attention_bias", False)
    yield Part("model.language_model.embed_tokens", text["vocab_size"] * hidden)
    for number in range(text["num_hidden_layers"]):
        layer = f"model.language_model.layers.{number}"
        yield _linear(f"{layer}.self_attn.q_proj", hidden, query, bias=bias)
        yield _linear(f"{layer}.self_attn.k_proj", hidden, key, bias=bias)
        yield _linear(f"{layer}.self_attn.v_proj", hidden, key, bias=bias)
        yield _linear(f"{layer}.self_attn.o_proj", query, hidden, bias=bias)
        for name, ins, outs in (
            ("gate_proj", hidden, inner),
            ("up_proj", hidden, inner),
            ("down_proj", inner, hidden),
        ):
            yield _linear(f"{layer}.mlp.{name}", ins, outs, bias=False)
        yield Part(f"{layer}.norms", 2 * hidden + 2 * size)
    yield Part("model.language_model.norm", hidden)
    if not tied:
        yield Part("lm_head", text["vocab_size"] * hidden)


def _vision(vision: Mapping[str, Any]) -> Iterator[Part]:
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    patch = vision.get("patch_size", 16) ** 2 * vision.get("temporal_patch_size", 2) * vision.get("in_channels", 3)
    merged = width * vision.get("spatial_merge_size", 2) ** 2
    yield Part("model.visual.patch_embed", patch * width + width)
    yield Part("model.visual.pos_embed", vision["num_position_embeddings"] * width)
    for number in range(vision["depth"]):
        block = f"model.visual.blocks.{number}"
        yield _linear(f"{block}.attn.qkv", width, 3 * width, bias=True)
        yield _linear(f"{block}.attn.proj", width, width, bias=True)
        yield _linear(f"{block}.mlp.linear_fc1", width, inner, bias=True)
        yield _linear(f"{block}.mlp.linear_fc2", inner, width, bias=True)
        yield Part(f"{block}.norms", 4 * width)
    deep = [f"deepstack_merger_list.{at}" for at in range(len(vision["deepstack_visual_indexes"]))]
    for merger in ("merger", *deep):
        yield _linear(f"model.visual.{merger}.linear_fc1", merged, merged, bias=True)
        yield _linear(f"model.visual.{merger}.linear_fc2", merged, vision["out_hidden_size"], bias=True)
        yield Part(f"model.visual.{merger}.norm", 2 * (width if merger == "merger" else merged))


def _frozen(name: str, tuner: TunerConfig) -> bool:
    if not name.startswith("model.visual."):
        return tuner.freeze_llm
    return tuner.freeze_aligner if "merger" in name else tuner.freeze_vit


def _adapted(name: str, tuner: TunerConfig) -> bool:
    if tuner.target_regex is not None:
        return re.fullmatch(tuner.target_regex, name) is not None
    if "all-linear" in tuner.target_modules:
        return not _frozen(name, tuner)
    return any(name.endswith(f".{target}") for target in tuner.target_modules)
