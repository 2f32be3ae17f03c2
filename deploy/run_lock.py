"""One process per run: a second start of a run that lives would rename its folder, or cut its files back.

| who waits | for what | who ends the wait |
|---|---|---|
| a start | the lock of a driver on another machine | that driver; `LEASE_S`, in which a file server forgets the dead |

A driver on this machine is not waited for: its lock dies with it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from protocol.errors import ConfigError

log = logging.getLogger("rollmatch")
LEASE_S = 120.0
"""NFS keeps the locks of a machine that is gone for 90 s by default."""


@contextmanager
def alone(run_dir: Path, lease_s: float = LEASE_S) -> Iterator[None]:
    """The run's folder belongs to this process within the block; ConfigError where it belongs to another."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    host = socket.gethostname()
    with run_dir.with_name(f".{run_dir.name}.lock").open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + lease_s
        while not _locked(file):
            file.seek(0)
            holder = file.read().strip() or "unknown"
            if holder.endswith(f" {host}") or time.monotonic() > deadline:
                raise ConfigError(
                    f"training.run_name: {run_dir} belongs to a run that lives ({holder}); wait for its end, or give "
                    "this one another name"
                )
            log.info("%s belongs to %s: waiting up to %.0f s for its end", run_dir, holder, lease_s)
            time.sleep(min(5.0, lease_s))
        file.truncate(0)
        file.write(f"process {os.getpid()} on {host}\n")
        file.flush()
        yield


def _locked(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems have no locks
        log.warning("%s cannot be locked (%s): see to it that no second run of this name is started", file.name, error)
    return True
