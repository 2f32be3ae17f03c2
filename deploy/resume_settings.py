"""What a resume must find as it was when its checkpoint was written.

Another setting would ask for other records than those that are owed, or train other tensors with the state of those
that were saved. The ranks compare their tensors once more (`learner.checkpoint`); here it is known before anything of
the run's folder is changed. No torch is imported here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from deploy.model_files import BrokenModelError, model_file, weight_files
from learner.settings import LearnerSettings
from protocol.config import RunConfig, TunerConfig
from protocol.errors import ConfigError

FROZEN = ("train_type", "freeze_llm", "freeze_vit", "freeze_aligner")
ADAPTER = ("lora_rank", "lora_alpha", "target_modules", "target_regex", "use_dora", "modules_to_save")
"""Of `tuner`, beside FROZEN, where there are adapters. Dropout may change."""
DIGEST = ", digest "
NUM_BLOCKS, BLOCK_BYTES = 64, 4096
"""What is read of each weight file."""


def settings_of(config: RunConfig, num_records: int) -> dict[str, Any]:
    """Dotted path → value, JSON only; a checkpoint remembers it."""
    learner = LearnerSettings.from_config(config, config.num_optimizer_steps(num_records))
    return {
        "model.model": _model(config.model.model),
        "model.torch_dtype": config.model.torch_dtype,
        "deepspeed.config": f"one that computes in {learner.compute_dtype}",
        **_tuner(config.tuner),
        "training.effective_batch_size": config.training.effective_batch_size,
        "training.seed": config.training.seed,
        "data.dataset_shuffle": config.data.dataset_shuffle,
        "custom.train_jsonl": f"a file of {num_records} records",
    }


def check_settings(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """ConfigError for the first that differs from what the checkpoint at `path` remembers.

    One that it does not remember is not compared: the version that wrote it did not know it.
    """
    for name, value in now.items():
        if name not in then:
            continue
        same = _same_model(then[name], value) if name == "model.model" else then[name] == value
        if not same:
            raise ConfigError(
                f"{name}: is {value}, and was {then[name]} when {path} was written: the run would not go on as it "
                "was; set it back, or start a new run from that merged/ folder"
            )


def _tuner(tuner: TunerConfig) -> dict[str, Any]:
    """What decides which tensors are trained; the order of names does not."""
    values = {name: getattr(tuner, name) for name in FROZEN + (ADAPTER if tuner.train_type == "lora" else ())}
    return {f"tuner.{name}": sorted(value) if isinstance(value, tuple) else value for name, value in values.items()}


def _same_model(then: str, now: str) -> bool:
    """By what is in the files where both are known: a folder may be mounted elsewhere, or replaced by another."""
    (name_then, _, digest_then), (name_now, _, digest_now) = then.partition(DIGEST), now.partition(DIGEST)
    return digest_then == digest_now if digest_then and digest_now else name_then == name_now


def _model(model: str) -> str:
    """The name without the folders above it, and the digest of the files where they are here."""
    parts = Path(os.path.abspath(model)).parts
    name = "/".join(parts[-2:]) if parts[-1] == "merged" else parts[-1]  # an export has its checkpoint's name
    digest = _digest(model)
    return name if digest is None else f"{name}{DIGEST}{digest}"


def _digest(model: str) -> str | None:
    """XXH3-128, its first half, of config.json and a sample of every weight file; None where one of them is not here.

    A sample, because weights are many GiB: training and merging change nearly all of them.
    """
    config = model_file(model, "config.json")
    if config is None:
        return None
    try:
        files = weight_files(config.parent)
    except BrokenModelError:
        return None
    digest = xxhash.xxh3_128(config.read_bytes())
    for file in files:
        _sample(file, digest)
    return digest.hexdigest()[:16]


def _sample(file: Path, digest: xxhash.xxh3_128) -> None:
    size = file.stat().st_size
    digest.update(size.to_bytes(8, "little"))
    with file.open("rb") as opened:
        for number in range(NUM_BLOCKS):
            opened.seek(max(0, size - BLOCK_BYTES) * number // (NUM_BLOCKS - 1))
            digest.update(opened.read(BLOCK_BYTES))
