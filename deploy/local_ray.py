"""A local Ray cluster in a session of its own, which lives exactly as long as the process that asked for it.

    driver ──► this program ──► Ray's daemons ──► workers
       stdin: open while the driver lives         die when their parent does

A signal for the driver's process group (a shell's `timeout`, a job manager, Ctrl-C) then reaches the driver alone,
which takes a checkpoint before it closes Ray. The program reads its standard input, where nobody ever writes: it ends
when the driver closes it, or when the driver is gone, however it went. Then it ends Ray and removes Ray's folder.

Ray's ports are on the loopback interface, so nobody else on the network reaches them, token or not. Ray does that where
a machine is no cluster's node, which it assumes of Windows and macOS; `LOOPBACK` makes it assume the same here.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.authentication.authentication_token_setup import enable_token_auth_by_default

from protocol.errors import InfrastructureFailure

log = logging.getLogger("rollmatch")

GONE = signal.SIGUSR1
LOOPBACK = {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0"}
_CLUSTERED = ray_constants.ENABLE_RAY_CLUSTER
STARTS = 3
"""A daemon that misses its deadline on a busy machine is no reason to lose a run."""
START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 60


class LocalRay:
    """The cluster from the driver's side."""

    def __init__(self, options: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """Starts a cluster with these options of `ray.init`, and with `environment` beside this process's own.

        Raises InfrastructureFailure when it does not start, `STARTS` times.
        """
        enable_token_auth_by_default()  # as `ray.init` does where it starts a cluster, but not where it joins one
        for attempt in range(1, STARTS + 1):
            self._process = subprocess.Popen(
                [sys.executable, "-m", __spec__.name, json.dumps(dict(options))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, **environment, **LOOPBACK},
                start_new_session=True,
            )
            try:
                self.address, session = self._read_address()
            except BaseException:
                self.close()
                raise
            if self.address:
                self.logs = Path(session) / "logs"
                ray_constants.ENABLE_RAY_CLUSTER = False  # LOOPBACK for this process, which has read the variable
                return
            self.close()
            log.warning("Ray did not start, try %d of %d", attempt, STARTS)
        raise InfrastructureFailure(
            f"a local Ray cluster did not start, {STARTS} times; its own error is above, or the machine is overloaded: "
            "Ray's daemons have fixed deadlines of 15 to 30 s"
        )

    def _read_address(self) -> tuple[str, str]:
        """Address and session's folder; empty where it did not start within START_TIMEOUT_S."""
        assert self._process.stdout is not None
        late = threading.Timer(START_TIMEOUT_S, self._kill)
        late.start()
        try:
            address, _, session = self._process.stdout.readline().strip().partition(" ")
        finally:  # also where Ctrl-C ends the wait
            late.cancel()
        return address, session

    def close(self) -> None:
        """Ends the cluster and waits until it has ended."""
        ray_constants.ENABLE_RAY_CLUSTER = _CLUSTERED
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._kill()
            self._process.wait()
        self._process.stdout.close()

    def _kill(self) -> None:
        """Ends the program and Ray's daemons, which are of its process group."""
        os.killpg(self._process.pid, signal.SIGKILL)


def serve(options: dict[str, Any]) -> None:
    """Starts Ray, prints its address and its session's folder, and ends it when standard input ends."""
    signal.signal(GONE, lambda *_: sys.exit())
    threading.Thread(target=_watch_driver, daemon=True).start()
    # Unix sockets allow about 100 characters: the directory must be short.
    scratch = Path(tempfile.mkdtemp(prefix="rm-", dir="/tmp"))
    try:
        context = ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=str(scratch),
            **options,
        )
        for number in (signal.SIGINT, signal.SIGTERM):  # who signals every process of a job means the driver
            signal.signal(number, signal.SIG_IGN)
        print(context.address_info["gcs_address"], context.address_info["session_dir"], flush=True)
        while True:
            signal.pause()
    finally:
        signal.signal(GONE, signal.SIG_IGN)
        ray.shutdown()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(os.getpid(), signal.SIGTERM)  # agents that still start would write into the folder once more
        shutil.rmtree(scratch, ignore_errors=True)


def _watch_driver() -> None:
    """Ends the program from the outside, also while Ray is still starting."""
    sys.stdin.read()
    os.kill(os.getpid(), GONE)


if __name__ == "__main__":
    try:
        serve(json.loads(sys.argv[1]))
    except Exception:
        traceback.print_exc()
    finally:
        os.killpg(os.getpid(), signal.SIGKILL)
