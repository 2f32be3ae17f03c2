"""AdamW for an optimizer in host memory: DeepSpeed's, whose kernel is compiled once on a machine.

| who waits | for what | who ends the wait |
|---|---|---|
| a rank | another rank of the machine that builds | that rank, or its death; the group's start deadline |

torch marks a build with a file and waits for one without end. A build that was killed leaves the file: so ours are one
at a time by a lock that dies with its process, and who holds that lock removes the file.
"""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch.utils.cpp_extension import _get_build_directory

from protocol.errors import ConfigError

log = logging.getLogger("rollmatch")


def cpu_adam(groups: list[dict[str, Any]], options: dict[str, Any]) -> torch.optim.Optimizer:
    """Compiles for minutes the first time, and keeps the kernel in TORCH_EXTENSIONS_DIR.

    Raises ConfigError where it cannot be built.
    """
    try:
        with alone_in(Path(_get_build_directory("cpu_adam", verbose=False))):
            return DeepSpeedCPUAdam(groups, adamw_mode=True, **options)
    except RuntimeError as error:
        raise ConfigError(
            "deepspeed.config: zero_optimization.offload_optimizer needs DeepSpeed's op cpu_adam, which cannot be "
            f"built here ({error.__cause__ or error}); install a C++ compiler and ninja on every machine with a "
            "learner rank, or write device: none"
        ) from error


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """No other rank builds in `folder` meanwhile, and none that was killed seems to."""
    with (folder / "rollmatch.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        left = folder / "lock"
        if left.exists():
            log.warning("%s is of a build that was killed: removed", left)
            left.unlink(missing_ok=True)
        yield
