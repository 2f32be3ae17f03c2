"""A checkpoint folder that takes a second to write: real Qwen3-VL architecture, real processor files, random weights.

The tokenizer has one token per byte, the special tokens and the 1,000 coordinate tokens.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from learner.settings import LearnerSettings, LossSettings, OptimizerSettings, ScheduleSettings, TunerSettings
from protocol.contracts import RequestKey
from protocol.segments import IGNORE_INDEX, Segment
from protocol.vocab import NUM_BINS, coord_token

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
TEMPLATE = (
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' -}}{%- if m.content is string -%}{{- m.content -}}"
    "{%- else -%}{%- for part in m.content -%}{%- if part.type == 'image' -%}"
    "{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}{%- else -%}{{- part.text -}}{%- endif -%}{%- endfor -%}"
    "{%- endif -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
SYSTEM, USER = "Answer in JSON.", "List all."
PIXELS = {
    "do_resize": False,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "size": {"shortest_edge": 1024, "longest_edge": 1048576},
}


def build_tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    words = (*SPECIALS, "<|video_pad|>", *(coord_token(k) for k in range(NUM_BINS)))
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words])
    return tokenizer


def model_config(tokenizer: Tokenizer, *, tied: bool = True, **text: int) -> Qwen3VLConfig:
    """`text` replaces values of the language model's section."""
    ids = {name: tokenizer.token_to_id(f"<|{name}|>") for name in ("image_pad", "video_pad")}
    frame = {name: tokenizer.token_to_id(f"<|{name}|>") for name in ("vision_start", "vision_end")}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [6, 5, 5], "mrope_interleaved": True}
    hidden = text.get("hidden_size", 64)
    return Qwen3VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": hidden,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "tie_word_embeddings": tied,
            "rope_parameters": rope,
            **text,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": hidden,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=frame["vision_start"],
        vision_end_token_id=frame["vision_end"],
        tie_word_embeddings=tied,
    )


def write_processor(folder: Path) -> Tokenizer:
    """Everything of a checkpoint but the model."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    files: dict[str, object] = {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096, **special},
        "preprocessor_config.json": {
            **PIXELS,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen3VLProcessor",
        },
        "video_preprocessor_config.json": {**PIXELS, "video_processor_type": "Qwen3VLVideoProcessor"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return tokenizer


def write_checkpoint(folder: Path, *, tied: bool = True, seed: int = 0, **text: int) -> Path:
    """Config, weights, tokenizer and processor; `text` as in `model_config`."""
    tokenizer = write_processor(folder)
    torch.manual_seed(seed)
    model = Qwen3VLForConditionalGeneration(model_config(tokenizer, tied=tied, **text))
    with torch.no_grad():  # large enough that the logits are far from uniform
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    model.save_pretrained(folder)
    return folder


FULL = TunerSettings(freeze_vit=False, freeze_aligner=False)


def optimizer(**changes: float | None) -> OptimizerSettings:
    """AdamW with one rate, which does not clip."""
    values: dict[str, float | None] = {
        "learning_rate": 1e-3,
        "vit_lr": None,
        "aligner_lr": None,
        "weight_decay": 0.01,
        "beta1": 0.9,
        "beta2": 0.95,
        "epsilon": 1e-8,
        "max_grad_norm": 0.0,
    }
    return OptimizerSettings(**(values | changes))  # type: ignore[arg-type]


def settings(model: Path, **changes: object) -> LearnerSettings:
    """fp32 on CPU, everything trained, constant rate."""
    values: dict[str, object] = {
        "model": str(model),
        "system_prompt": SYSTEM,
        "user_prompt": USER,
        "torch_dtype": "float32",
        "loss": LossSettings(target_truncate=16),
        "tuner": FULL,
        "optimizer": optimizer(),
        "schedule": ScheduleSettings(kind="constant"),
        "deepspeed": {"zero_optimization": {"stage": 0}},
        "bucket_bytes": 100_000,
        "collective_timeout_s": 60.0,
    }
    return LearnerSettings(**(values | changes))  # type: ignore[arg-type]


def draw_image(path: Path, seed: int, width: int = 64, height: int = 64) -> str:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def make_segment(
    folder: Path, number: int, *, prefix: int = 9, tail: int = 12, size: tuple[int, int] | None = None
) -> Segment:
    """A segment on a noise image: random bytes, two coordinate slots in the prefix and three in the tail.

    `size`: of the image, width and height, multiples of 32; by default 64 or 96 by 64.
    """
    rng = np.random.default_rng(number)
    tokenizer = build_tokenizer()
    width, height = size or (64 + 32 * (number % 2), 64)
    image = draw_image(folder / f"{number}.png", number, width, height)
    text = TEMPLATE_TEXT.replace("<|image_pad|>", "<|image_pad|>" * (width * height // 1024))
    prompt = tokenizer.encode(text).ids
    answer = rng.integers(0, 256, prefix + tail).tolist()
    bins = rng.integers(0, NUM_BINS, 5)
    slots = [1, 4, prefix + 2, prefix + 5, prefix + 6]
    first = tokenizer.token_to_id(coord_token(0))
    for slot, bin_ in zip(slots, bins, strict=True):
        answer[slot] = first + int(bin_)
    ids = np.array([*prompt, *answer, tokenizer.token_to_id("<|im_end|>"), *tokenizer.encode("\n").ids], np.int32)
    start = len(prompt) + prefix
    labels = np.full(len(ids), IGNORE_INDEX, np.int32)
    labels[start : start + tail + 1] = ids[start : start + tail + 1]
    positions = np.array([len(prompt) + slot for slot in (*slots[2:], *slots[:2])], np.int32)
    labels[positions] = IGNORE_INDEX
    targets = np.concatenate([bins[2:], rng.integers(0, NUM_BINS, 2)]).astype(np.int32)
    return Segment(
        key=RequestKey(number),
        input_ids=ids,
        labels=labels,
        coord_positions=positions,
        coord_bins=targets,
        coord_in_prefix=np.array([False, False, False, True, True]),
        prompt_len=len(prompt),
        images=(image,),
        first_version=0,
        last_version=0,
    )


TEMPLATE_TEXT = (
    f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>{USER}"
    "<|im_end|>\n<|im_start|>assistant\n"
)
