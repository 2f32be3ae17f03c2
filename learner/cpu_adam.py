"""AdamW for an optimizer in host memory: DeepSpeed's, whose kernel is compiled once on a machine.

| who waits | for what | who ends the wait |
|---|---|---|
| a rank | another rank of the machine that builds | that rank, or its death; the group's start deadline |
| a rank | another program's build in the same folder | that program; `LONGEST_BUILD_S` after it began |

torch marks a build with a file and waits for one without end. A build that was killed leaves the file: so ours are one
at a time by a lock that dies with its process, and who holds that lock removes the file that one of ours has left. One
of another program may be of a build that lives, until it is too old for that.
"""

from __future__ import annotations

import fcntl
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch.utils.cpp_extension import _get_build_directory

from protocol.errors import ConfigError

log = logging.getLogger("rollmatch")

LONGEST_BUILD_S = 900.0
"""The kernel compiles for minutes on a busy machine; a mark that is older is of a build that was killed."""


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
    with (folder / "rollmatch.lock").open("a+") as file:
        if not _locked(file):
            yield
            return
        file.seek(0)
        _clear(folder / "lock", ours=bool(file.read()))
        file.write("building")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # what is left there is of a process that was killed


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:  # some network file systems have no locks
        text = "%s cannot be locked (%s): remove the file `lock` beside it where a killed build has left one"
        log.warning(text, file.name, error)
        return False
    return True


def _clear(mark: Path, *, ours: bool) -> None:
    """Removes torch's mark of a build that was killed, and waits for the end of one that may live."""
    while mark.exists():
        if ours or time.time() - _modified(mark) > LONGEST_BUILD_S:
            log.warning("%s is of a build that was killed: removed", mark)
            mark.unlink(missing_ok=True)
            return
        log.info("%s is of another program's build: waiting for its end", mark)
        time.sleep(5)


def _modified(mark: Path) -> float:
    try:
        return mark.stat().st_mtime
    except FileNotFoundError:  # its build has just ended
        return time.time()
