"""The checkpoints' part of `rollmatch check`: what a crash would cost, and whether the disk holds what is kept."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from deploy.checkpoints import ResumePoint, resume_path
from deploy.findings import Finding, warning
from deploy.model_shape import model_shape
from deploy.sizing import GIB, checkpoint_bytes
from protocol.config import RunConfig
from protocol.errors import ConfigError

LONG_RUN = 500
"""Optimizer steps above which a run that saves only its end is probably not meant."""


def check_saving(config: RunConfig, num_records: int) -> Iterator[Finding]:
    """Warnings; nothing about the disk where the model's size is unknown, or the folder is another machine's."""
    training, num_steps = config.training, config.num_optimizer_steps(num_records)
    every = config.interval(training.save_strategy, training.save_steps, num_records)
    delay = config.save_delay(num_records)
    first = math.ceil(max(every, delay)) if every else num_steps
    if first >= num_steps > LONG_RUN:
        name, change = _late(config, delay if 0 < every < delay else None)
        value = getattr(training, name)
        yield warning(
            f"training.{name}",
            f"is {'null' if value is None else value}, so no checkpoint is written before the last of {num_steps} "
            f"optimizer steps, and a crash costs everything since the start; {change}",
        )
    if every and training.save_total_limit is None:
        last = _last_step(config)
        following = math.ceil(max((last // every + 1) * every, delay))
        if following <= num_steps:
            count = 1 + int(num_steps / every) - int(following / every)
            yield from _disk(config, min(count, num_steps - following + 1))  # at most one at each step


def _last_step(config: RunConfig) -> int:
    """The step of the checkpoint that the run goes on from; 0 to start anew, and where the start would be refused."""
    try:
        path = resume_path(config)
        return ResumePoint.read(path).state.step if path is not None else 0
    except ConfigError:
        return 0


def _late(config: RunConfig, delay: Fraction | None) -> tuple[str, str]:
    """The setting by which no checkpoint comes before the last, and what to do about it; `delay` in optimizer steps,
    where it is the reason."""
    training = config.training
    if delay is not None:
        return ("save_delay_epochs" if delay > training.save_delay_steps else "save_delay_steps"), "lower it"
    if training.save_strategy != "steps":
        return "save_strategy", "write steps, and set training.save_steps"
    return "save_steps", "set training.save_steps" if training.save_steps is None else "lower it"


def _disk(config: RunConfig, count: int) -> Iterator[Finding]:
    folder, shape = Path(config.training.output_dir).absolute(), model_shape(config)
    if shape is None or (config.cluster.address is not None and not folder.is_dir()):
        return
    existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    needed, free = count * checkpoint_bytes(shape, config), shutil.disk_usage(existing).free
    if needed > free:
        yield warning(
            "training.save_total_limit",
            f"is null, and {count} more checkpoints take at least {needed / GIB:.0f} GiB, of which {existing} has "
            f"{free / GIB:.0f} free; set it, or raise save_steps",
        )
