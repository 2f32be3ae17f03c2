"""The desc monitor's part of `rollmatch check`: the text encoder's files, read as far as their headers."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from deploy.findings import Finding, error
from deploy.model_files import BrokenModelError, model_file, tensor_headers
from deploy.run_paths import DESC_ENCODER
from protocol.config import RunConfig

_OTHERWISE = "or set desc_monitor.mode to exact"
_NEEDED = ("config.json", "tokenizer.json", "model.safetensors")


def check_encoder(config: RunConfig) -> Iterator[Finding]:
    """What would keep an actor from loading the encoder; nothing where semantics are not asked for."""
    monitor = config.matching.desc_monitor
    if not monitor.enabled or monitor.mode == "exact":
        return
    if importlib.util.find_spec("sentence_transformers") is None:
        yield error(
            DESC_ENCODER, f"needs the package sentence-transformers, which is missing; install it, {_OTHERWISE}"
        )
        return
    files = {name: model_file(monitor.semantic_model, name) for name in _NEEDED}
    missing = [name for name, path in files.items() if path is None]
    if missing:
        place = (
            "a folder that lacks" if Path(monitor.semantic_model).is_dir() else "no folder; the local hub cache lacks"
        )
        yield error(
            DESC_ENCODER,
            f"{monitor.semantic_model} is {place} {', '.join(missing)}; name the folder of a sentence-transformers "
            f"model, or download it beforehand, {_OTHERWISE}",
        )
        return
    weights = files["model.safetensors"]
    assert weights is not None
    try:
        tensor_headers(weights)
    except (BrokenModelError, OSError) as raised:
        yield error(DESC_ENCODER, f"{raised}, {_OTHERWISE}")
