"""The checkpoints' part of `rollmatch check`: what a crash would cost, and whether the disk holds what is kept."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from deploy.findings import Finding, warning
from deploy.model_shape import model_shape
from deploy.sizing import GIB, checkpoint_bytes
from protocol.config import RunConfig

LONG_RUN = 500
"""Optimizer steps above which a run that saves only its end is probably not meant."""


def check_saving(config: RunConfig, num_records: int) -> Iterator[Finding]:
    """Warnings; nothing about the disk where the model's size is unknown, or the folder is another machine's."""
    training, num_steps = config.training, config.num_optimizer_steps(num_records)
    every = config.interval(training.save_strategy, training.save_steps, num_records)
    if not every and num_steps > LONG_RUN:
        name, value = ("save_steps", "null") if training.save_strategy == "steps" else ("save_strategy", "no")
        yield warning(
            f"training.{name}",
            f"is {value}, so no checkpoint is written before the last of {num_steps} optimizer steps, and a crash "
            "costs everything since the start; set training.save_steps",
        )
    if every and training.save_total_limit is None:
        yield from _disk(config, int(num_steps / every))


def _disk(config: RunConfig, count: int) -> Iterator[Finding]:
    folder, shape = Path(config.training.output_dir).absolute(), model_shape(config)
    if shape is None or (config.cluster.address is not None and not folder.is_dir()):
        return
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    needed, free = count * checkpoint_bytes(shape, config), shutil.disk_usage(existing).free
    if needed > free:
        yield warning(
            "training.save_total_limit",
            f"is null, and {count} checkpoints take at least {needed / GIB:.0f} GiB, of which {existing} has "
            f"{free / GIB:.0f} free; set it, or raise save_steps",
        )
