"""Files of models that were downloaded before: runs never ask the hub itself."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError


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
