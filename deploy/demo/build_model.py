"""Builds an untrained demo checkpoint: a real Qwen3-VL architecture, real processor files, a small byte-level BPE.

`python -m deploy.demo.build_model OUT` writes config, random weights, tokenizer and processor; `pretrain` trains it.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from deploy.demo.scenes import draw_scene
from deploy.demo.text import SYSTEM_PROMPT, USER_PROMPT, answer_text
from protocol.vocab import NUM_BINS, coord_token

NUM_TEXT_TOKENS = 480
"""256 bytes and what the canonical JSON, the prompts and the descs need."""

# The special tokens of the Qwen3 tokenizer, in its order.
SPECIALS = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>"),
    *("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
)
COORDS = ("<|coord_*|>", *(coord_token(k) for k in range(NUM_BINS)))

# Qwen's split: letters with at most one leading sign, single digits, runs of signs with a leading blank.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{- message.content -}}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
{%- elif part.type == 'text' -%}{{- part.text -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def _corpus() -> Iterator[str]:
    """Text cut where Qwen's vocabulary cuts it, so that `"]` and `},` stay two tokens here as they are there."""
    yield from [SYSTEM_PROMPT, USER_PROMPT, "system\n", "user\n", "assistant\n"] * 50
    for index in range(400):
        text = answer_text(draw_scene(seed=9, index=index).objects)
        yield from (part for part in re.split(r"<\|coord_\d+\|>|(?<=\])(?=\})", text) if part)


def build_tokenizer() -> Tokenizer:
    """Byte-level BPE with Qwen's split, special tokens and the 1,001 coordinate tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(SPLIT), "isolated"), byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=NUM_TEXT_TOKENS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (*SPECIALS, *COORDS)])
    return tokenizer


def write_processor(folder: Path, tokenizer: Tokenizer) -> None:
    """Tokenizer, image processor, video processor and chat template, as a Qwen3-VL checkpoint has them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    image = {
        "do_resize": False,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "size": {"shortest_edge": 1024, "longest_edge": 1048576},
    }
    files: dict[str, object] = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "model_max_length": 8192,
            "additional_special_tokens": list(SPECIALS),
        },
        "preprocessor_config.json": {
            **image,
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen3VLProcessor",
        },
        "video_preprocessor_config.json": {**image, "video_processor_type": "Qwen3VLVideoProcessor"},
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def model_config(tokenizer: Tokenizer) -> Qwen3VLConfig:
    """4.0 M parameters: text 4 x 192, vision 3 x 128; tied embeddings."""
    markers = ("image_pad", "video_pad", "vision_start", "vision_end")
    ids = {name: tokenizer.token_to_id(f"<|{name}|>") for name in markers}
    return Qwen3VLConfig(
        text_config={
            "vocab_size": tokenizer.get_vocab_size(),
            "hidden_size": 192,
            "intermediate_size": 640,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 32,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
        },
        vision_config={
            "depth": 3,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_heads": 4,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "out_hidden_size": 192,
            "num_position_embeddings": 256,
            "deepstack_visual_indexes": [0, 1],
        },
        image_token_id=ids["image_pad"],
        video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"],
        vision_end_token_id=ids["vision_end"],
        tie_word_embeddings=True,
    )


def smooth_coordinates(model: Qwen3VLForConditionalGeneration, first_id: int) -> None:
    """Starts the coordinate embeddings as Fourier features of the bin, so that near bins begin near each other."""
    table = model.get_input_embeddings().weight.data
    width = table.shape[1]
    position = torch.arange(NUM_BINS)[:, None] / NUM_BINS
    frequency = 2 ** torch.linspace(0, math.log2(NUM_BINS / 16), width // 4)
    phase = 2 * math.pi * position * frequency
    amplitude = 0.02 * math.sqrt(2) * frequency**-0.35
    waves = torch.cat([phase.sin() * amplitude, phase.cos() * amplitude], dim=1)
    table[first_id : first_id + NUM_BINS, : width // 2] = waves


def build(folder: Path) -> None:
    """Writes the whole untrained checkpoint."""
    tokenizer = build_tokenizer()
    write_processor(folder, tokenizer)
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(model_config(tokenizer))
    first_id = tokenizer.token_to_id(coord_token(0))
    assert first_id is not None, "build_tokenizer added it"
    smooth_coordinates(model, first_id)
    model.generation_config.eos_token_id = tokenizer.token_to_id("<|im_end|>")
    model.generation_config.pad_token_id = tokenizer.token_to_id("<|endoftext|>")
    model.save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    build(arguments.out)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
