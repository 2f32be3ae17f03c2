"""One process per run: a second start of a run that lives would rename its folder, or cut its files back.

| who waits | for what | who ends the wait |
|---|---|---|
| a start | the lock of a driver on another machine | that driver; `LEASE_S`, in which a file server forgets the dead |

A driver on this machine is not waited for: its lock dies with it. Nor is one whose run's folder lies above or below.

A folder that is a link has two locks, one beside the link and one beside what it leads to: a fresh start renames the
link, after which its name leads elsewhere.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TextIO

from protocol.errors import ConfigError

log = logging.getLogger("rollmatch")
LEASE_S = 120.0
"""NFS keeps the locks of a machine that is gone for 90 s by default."""


@contextmanager
def alone(run_dir: Path, lease_s: float = LEASE_S) -> Iterator[None]:
    """The run's folder belongs to this process within the block; ConfigError where it belongs to another, or where a
    run lives in a folder above or below it: either would be renamed with the other."""
    named = run_dir.parent.resolve() / run_dir.name  # one lock, by whatever links the folders above are reached
    folders = sorted({named, named.resolve()})  # in one order, so that no two starts wait for each other
    with ExitStack() as stack:
        for folder in folders:
            stack.enter_context(_lock(folder, lease_s))
        for folder in folders:
            _refuse_nested(folder, own=[_lock_of(each) for each in folders])
        yield


@contextmanager
def _lock(folder: Path, lease_s: float) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    with _lock_of(folder).open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + lease_s
        while not _locked(file, fcntl.LOCK_EX):
            holder = _holder(file)
            if holder.endswith(f" {host}") or time.monotonic() > deadline:
                raise ConfigError(
                    f"training.run_name: {folder} belongs to a run that lives ({holder}); wait for its end, or give "
                    "this one another name"
                )
            log.info("%s belongs to %s: waiting up to %.0f s for its end", folder, holder, lease_s)
            time.sleep(min(5.0, lease_s))
        file.truncate(0)
        file.write(f"process {os.getpid()} on {host}\n")
        file.flush()
        yield


def _refuse_nested(run_dir: Path, own: Sequence[Path]) -> None:
    for path in (*map(_lock_of, run_dir.parents[:-1]), *run_dir.resolve().rglob(".*.lock")):
        if path in own or not path.is_file():
            continue
        with path.open(encoding="utf-8") as file:
            if not _locked(file, fcntl.LOCK_SH):
                other = path.with_name(path.name.removeprefix(".").removesuffix(".lock"))
                raise ConfigError(
                    f"training.run_name: {run_dir} and {other}, which belongs to a run that lives ({_holder(file)}), "
                    "lie one in the other; wait for its end, or give this one another name"
                )


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _holder(file: TextIO) -> str:
    file.seek(0)
    return file.read().strip() or "unknown"


def _locked(file: TextIO, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):  # the latter is SMB's
            return False
        # some network file systems have no locks
        log.warning("%s cannot be locked (%s): see to it that no second run of this name is started", file.name, error)
    return True
