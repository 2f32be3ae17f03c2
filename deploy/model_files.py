"""A checkpoint folder's files as they lie there: JSON, and what safetensors say of themselves. No weights, no torch."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from protocol.errors import ConfigError

MODEL_TYPE = "qwen3_vl"
"""The dense models. transformers would load a mixture of experts as one, with new weights in the place of experts."""
INDEX = "model.safetensors.index.json"
UNTRAINED = "UNTRAINED_COORDINATES.md"
"""Note of `rollmatch add-coordinates`. An export leaves it behind: what was trained has no such note."""
_MAX_HEADER_BYTES = 1 << 27


class BrokenModelError(ConfigError):
    """A file of the checkpoint that is missing or cannot be read."""


def model_file(model: str, name: str) -> Path | None:
    """`name` of a model that is a folder or a name on the hub; None where it is neither here nor in the local cache."""
    if Path(model).is_dir():
        path = Path(model) / name
        return path if path.is_file() else None
    if model.count("/") != 1:
        return None
    try:
        cached = try_to_load_from_cache(model, name)
    except HFValidationError:
        return None  # a path of one level, not a name on the hub
    return Path(cached) if isinstance(cached, str) else None


def read_json(path: Path) -> dict[str, Any]:
    """The object that a file holds."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise BrokenModelError(f"{path} is missing; use a complete checkpoint folder") from None
    except (OSError, ValueError) as raised:
        raise BrokenModelError(f"{path} cannot be read ({raised}); use a complete checkpoint folder") from raised
    if not isinstance(data, dict):
        raise BrokenModelError(f"{path} holds no JSON object; use a complete checkpoint folder")
    return data


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token → id, of what tokenizer.json holds."""
    vocabulary = tokenizer.get("model", {}).get("vocab")
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    ids.update({entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])})
    return ids


def trained_tables(config: Mapping[str, Any]) -> list[str]:
    """Modules that hold a token's rows, of what config.json holds; a tied head is the embedding."""
    return ["embed_tokens"] if config.get("tie_word_embeddings", True) else ["embed_tokens", "lm_head"]


def weight_files(folder: Path) -> list[Path]:
    """One file, or those that the index names; all of them exist."""
    index = folder / INDEX
    if not index.is_file():
        single = folder / "model.safetensors"
        if not single.is_file():
            raise BrokenModelError(
                f"{folder} has neither {single.name} nor {index.name}; use a checkpoint in safetensors"
            )
        return [single]
    shards = read_json(index).get("weight_map")
    if not (isinstance(shards, dict) and shards and all(isinstance(name, str) for name in shards.values())):
        raise BrokenModelError(f"{index} has no weight_map of tensor to file; complete the download")
    files = [folder / name for name in sorted(set(shards.values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise BrokenModelError(
            f"{index} names {len(missing)} files that are missing, first {missing[0]}; complete the download"
        )
    return files


def tensor_headers(file: Path) -> dict[str, Any]:
    """`dtype` and `shape` by tensor name: 8 bytes of length, then JSON, then all that the JSON places."""
    with open(file, "rb") as opened:
        size = struct.unpack("<Q", opened.read(8).ljust(8, b"\0"))[0]
        if not 0 < size <= _MAX_HEADER_BYTES:
            raise BrokenModelError(
                f"{file} is no safetensors file (header of {size} bytes); is it a Git LFS pointer? fetch the file"
            )
        try:
            header = json.loads(opened.read(size))
            tensors = {name: value for name, value in header.items() if name != "__metadata__"}
            whole = 8 + size + max((value["data_offsets"][1] for value in tensors.values()), default=0)
        except (ValueError, AttributeError, LookupError, TypeError) as raised:  # JSON of another shape
            raise BrokenModelError(f"{file} has a broken header ({raised}); fetch the file again") from raised
        on_disk = os.fstat(opened.fileno()).st_size
    if on_disk < whole:
        raise BrokenModelError(f"{file} is cut short: it has {on_disk} of {whole} bytes; download it again")
    return tensors
