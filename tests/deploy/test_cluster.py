"""What becomes of a Ray that does not start, or does not answer; the rest is in tests/integration."""

from __future__ import annotations

import socket
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from deploy import cluster
from deploy.live import _reachable
from deploy.local_ray import LocalRay
from protocol.config import load_config
from protocol.errors import ConfigError, InfrastructureFailure, Interrupted

ROOT = Path(__file__).resolve().parents[2]


def test_a_cluster_that_does_not_answer_is_named_by_its_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(**_: Any) -> NoReturn:
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr("ray.init", nobody)
    config = load_config(ROOT / "configs" / "demo.yaml", overrides=["cluster.address=auto"])
    with (
        pytest.raises(InfrastructureFailure, match=r"^cluster\.address: no Ray cluster answers at auto"),
        cluster.ray_session(config),
    ):
        pytest.fail("there is none")


@pytest.mark.parametrize("address", ["ray://head:10001", "http://head:8265", "head", "local", "head:0", "head:65536"])
def test_an_address_that_a_driver_cannot_join_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match=r"^cluster\.address: must be auto or host:port .* use rollmatch submit"):
        cluster._connect(address, {})


def test_a_cluster_where_nobody_listens_is_named_without_waiting_for_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.init", lambda **_: pytest.fail("Ray tries for two minutes"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(InfrastructureFailure, match=rf"no Ray cluster answers at 127\.0\.0\.1:{port} \(.*refused"):
        cluster._connect(f"127.0.0.1:{port}", {})


def test_ctrl_c_while_ray_starts_leaves_no_timer_behind() -> None:
    def interrupt() -> NoReturn:
        raise KeyboardInterrupt

    starting = LocalRay.__new__(LocalRay)
    starting._process = SimpleNamespace(stdout=SimpleNamespace(readline=interrupt), pid=0)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        starting._read_address()
    timers = [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]
    for timer in timers:
        timer.join(5)
    assert not any(timer.is_alive() for timer in timers)


@pytest.mark.parametrize(("error", "kept"), [(OSError("gone"), True), (Interrupted("asked to stop"), False)])
def test_the_end_of_each_log_outlives_a_run_that_fails(tmp_path: Path, error: Exception, kept: bool) -> None:
    logs, run_dir = tmp_path / "logs", tmp_path / "run"
    (logs / "old").mkdir(parents=True)
    run_dir.mkdir()
    (logs / "worker-1.err").write_bytes(b"a" + b"b" * cluster.KEPT_BYTES)
    (logs / "worker-2.err").touch()
    with pytest.raises(type(error)), cluster._keeping_logs(logs, run_dir / cluster.KEPT_LOGS):
        raise error
    assert (run_dir / cluster.KEPT_LOGS).exists() is kept
    if kept:
        (found,) = (run_dir / cluster.KEPT_LOGS).iterdir()
        assert found.read_bytes() == b"b" * cluster.KEPT_BYTES


def test_an_endpoint_on_every_interface_is_written_down_as_the_nodes_own() -> None:
    assert _reachable("127.0.0.1", "127.0.0.1:9095") == "127.0.0.1:9095"
    host, _, port = _reachable("0.0.0.0", "0.0.0.0:9095").rpartition(":")
    assert (host not in ("", "0.0.0.0"), port) == (True, "9095")
