"""Ray: a private local cluster for one run, or a connection to one that exists. Whoever starts it here ends it here."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray

from deploy.bundles import shares, totals
from deploy.cluster_address import head_of
from deploy.local_ray import LocalRay
from protocol.config import RunConfig
from protocol.errors import ConfigError, InfrastructureFailure, Interrupted

ROOT = Path(__file__).resolve().parent.parent
"""Where the packages lie: workers of a local cluster import them from here."""
KEPT_LOGS, EVALUATION_LOGS = "ray_logs", "ray_logs_evaluate"
"""In the run's folder; an evaluation's beside those of the run that it may be about."""
KEPT_BYTES = 1 << 20
"""Of each file, its end."""
REACH_S = 10.0
"""For a first connection; Ray itself goes on trying for two minutes."""

log = logging.getLogger("rollmatch")


def required_cpus(config: RunConfig) -> int:
    """Logical CPUs that the placement asks for; a local cluster offers exactly these."""
    return max(1, math.ceil(totals(shares(config))["CPU"]))


@contextlib.contextmanager
def ray_session(config: RunConfig, kept_logs: Path | None = None) -> Iterator[None]:
    """Connects to `cluster.address`, or starts a local cluster with its own directory, on the loopback interface.

    A local cluster's processes end with this context, whatever happened inside, and with this process, however it ends.
    Where the context fails, the end of their logs goes to `kept_logs`: `KEPT_LOGS` in the run's folder by default.
    """
    # Accelerators are assigned by Ray only where a GPU was asked for; without this a CPU actor would see them all.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")  # Ray's 60 s are too few on a busy laptop
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)}
    cluster = config.cluster
    with contextlib.ExitStack() as stack:
        if cluster.address is not None:
            address, runtime = cluster.address, {}
        else:
            options = {"num_cpus": required_cpus(config), "object_store_memory": cluster.object_store_bytes}
            local = LocalRay(options, environment)
            stack.callback(local.close)
            stack.enter_context(_keeping_logs(local.logs, kept_logs or config.run_dir / KEPT_LOGS))
            address, runtime = local.address, {"runtime_env": {"env_vars": environment}}
        stack.callback(ray.shutdown)
        _connect(address, runtime)
        yield


def _connect(address: str, runtime: dict[str, Any]) -> None:
    try:
        _knock(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **runtime)
    except ConfigError:
        raise
    except (OSError, RuntimeError, ValueError) as error:
        raise InfrastructureFailure(
            f"cluster.address: no Ray cluster answers at {address} ({error}); correct it, or remove it for a local one"
        ) from error


def _knock(address: str) -> None:
    """Raises OSError at once where nobody listens, ConfigError for an address that a driver cannot join."""
    head = head_of(address)
    if head is not None:
        socket.create_connection(head, timeout=REACH_S).close()


@contextlib.contextmanager
def _keeping_logs(logs: Path, target: Path) -> Iterator[None]:
    """Where the block fails, the end of what each of Ray's processes said goes to `target`, if its folder exists: a
    local session's own files end with it."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, Interrupted) and target.parent.is_dir():
            _keep_logs(logs, target)
        raise


def _keep_logs(logs: Path, target: Path) -> None:
    """Replaces `target` by the last `KEPT_BYTES` of each file in `logs` that is not empty."""
    try:
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for path in logs.iterdir():
            if path.is_file() and (size := path.stat().st_size):
                with path.open("rb") as file:
                    file.seek(max(0, size - KEPT_BYTES))
                    (target / path.name).write_bytes(file.read(KEPT_BYTES))
    except OSError as error:  # the run's own failure is what must be told
        log.warning("what Ray's processes said could not be kept in %s: %s", target, error)
    else:
        log.info("what Ray's processes said is in %s", target)
