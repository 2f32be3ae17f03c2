"""Checkpoints with random weights at the sizes of Qwen3-VL, and the run file that goes with them on one GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from deploy.model_shape import PRESETS
from protocol.config import RunConfig, load_config
from tests.learner import tiny

ROOT = Path(__file__).resolve().parent.parent
MATCHING = "custom.extra.rollout_matching"
LAST_LAYERS = 8
"""Language layers with adapters, as in configs/node_8gpu.yaml."""
ROOM = {"tiny": ["global_max_length=2000", f"{MATCHING}.vllm.max_model_len=256", f"{MATCHING}.max_new_tokens=64"]}


def config_of(size: str, folder: Path, *more: str) -> RunConfig:
    """The 8-GPU run file on one GPU: one engine, one rank, adapters in the last layers."""
    layers = 2 if size == "tiny" else PRESETS[size]["text_config"]["num_hidden_layers"]
    last = "|".join(str(layer) for layer in range(layers - min(LAST_LAYERS, layers), layers))
    regex = rf"model\.(language_model\.layers\.({last})\.(self_attn|mlp)\.\w+_proj"
    regex += r"|visual\.(merger|deepstack_merger_list\.\d+)\.linear_fc[12])"
    gpu = int(torch.cuda.is_available())
    overrides = [
        f"model.model={folder}",
        f"tuner.target_regex={regex}",
        f"custom.train_jsonl={folder}/train.jsonl",
        f"custom.val_jsonl={folder}/train.jsonl",
        f"{MATCHING}.vllm.tensor_parallel_size=1",
        f"cluster.gpus_per_actor={gpu}",
        f"cluster.gpus_per_learner={gpu}",
        "cluster.num_learners=1",
        f"custom.system_prompt={tiny.SYSTEM}",
        f"custom.user_prompt={tiny.USER}",
    ]
    return load_config(ROOT / "configs" / "node_8gpu.yaml", overrides=[*overrides, *ROOM.get(size, []), *more])


def write(size: str, folder: Path) -> dict[str, Any]:
    """A checkpoint of this size: random weights, bfloat16."""
    tokenizer = tiny.write_processor(folder)
    config = tiny.model_config(tokenizer)
    if size != "tiny":
        config = _full_size(config, PRESETS[size])
    torch.set_default_dtype(torch.bfloat16)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = Qwen3VLForConditionalGeneration(config)
    model.save_pretrained(folder)
    (folder / "train.jsonl").write_text("")
    return {"parameters": sum(parameter.numel() for parameter in model.parameters())}


def _full_size(small: Qwen3VLConfig, preset: dict[str, Any]) -> Qwen3VLConfig:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    text = preset["text_config"] | {"rope_parameters": rope, "max_position_embeddings": 262_144}
    vision = small.vision_config.to_dict() | preset["vision_config"] | {"num_heads": 16}
    tied = preset["tie_word_embeddings"]
    ids = {
        name: getattr(small, name)
        for name in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    }
    return Qwen3VLConfig(
        text_config=text | {"tie_word_embeddings": tied}, vision_config=vision, tie_word_embeddings=tied, **ids
    )
