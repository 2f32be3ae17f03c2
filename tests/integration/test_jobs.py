"""A real head with dashboard and token authentication: both ways to submit, stop, resubmit, resume, finish."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.integration.conftest import ROOT, processes_with, read_lines

pytestmark = [pytest.mark.integration, pytest.mark.long]
BIN = Path(sys.executable).parent
START_S = 240
JOB_S = 420


class Head(NamedTuple):
    address: str
    environment: dict[str, str]


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    """`ray start --head` as a child of this test, with its own ports, folder and token."""
    marker = uuid.uuid4().hex
    environment = os.environ | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": uuid.uuid4().hex,
        "RAY_USAGE_STATS_ENABLED": "0",
        # A machine that does other work starts Ray slowly, and Ray's own patience is 30 s.
        "RAY_raylet_start_wait_time_s": "180",
        "RAY_agent_register_timeout_ms": "180000",
        "ROLLMATCH_TEST_MARKER": marker,
    }
    names = ("port", "dashboard-port", "ray-client-server-port", "dashboard-agent-listen-port", "metrics-export-port")
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    scratch = Path("/tmp") / f"rm-{marker[:8]}"  # unix sockets allow about 100 characters
    command = ["ray", "start", "--head", "--block", "--num-cpus=4", "--object-store-memory=200000000"]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", "--node-ip-address=127.0.0.1"]
    command += [f"--temp-dir={scratch}", "--disable-usage-stats", *(f"--{name}={ports[name]}" for name in names)]
    log = tmp_path_factory.mktemp("head") / "ray.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    found = Head(f"http://127.0.0.1:{ports['dashboard-port']}", environment)
    try:
        wait_for_dashboard(found, process, log)
        yield found
    finally:
        process.terminate()  # ends everything that this head started, and nothing else
        process.wait(timeout=180)
        end = time.monotonic() + 30
        while processes_with(marker) and time.monotonic() < end:
            time.sleep(0.5)
        subprocess.run(["rm", "-rf", str(scratch)], check=True)
    assert not processes_with(marker)


def wait_for_dashboard(head: Head, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while ray_job(head, "list", "--address", head.address).returncode != 0:
        assert process.poll() is None, log.read_text()[-2000:]
        assert time.monotonic() < end, f"no dashboard within {START_S} s: {log.read_text()[-2000:]}"
        time.sleep(1)


def ray_job(head: Head, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["ray", "job", *words], cwd=ROOT, env=head.environment, text=True, capture_output=True, timeout=JOB_S
    )


def trained_steps(run: Path) -> list[int]:
    path = run / "metrics.jsonl"
    return [line["step"] for line in read_lines(path) if "loss/ce" in line] if path.exists() else []


def submit(head: Head, arguments: list[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deploy.cli", "submit", "--address", head.address, "--config", "configs/demo.yaml"]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*command, *arguments],
        cwd=ROOT,
        env=head.environment,
        text=True,
        stdout=pipe,
        stderr=pipe,
        # Tests that a shell runs in the background inherit a SIGINT that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.timeout(1800)
def test_a_job_is_followed_stopped_with_a_checkpoint_resubmitted_and_finished(
    head: Head, arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    common = ["custom.val_jsonl=null", "metrics.port=0", "training.resume=auto", "cluster.num_learners=1"]

    # A wrong token is refused before anything is uploaded.
    stranger = head._replace(environment=head.environment | {"RAY_AUTH_TOKEN": "0" * 32})
    refused = submit(stranger, arguments(*common))
    _, errors = refused.communicate(timeout=JOB_S)
    assert refused.returncode == 2, errors
    assert "RAY_AUTH_TOKEN" in errors

    # A command that fails on the cluster: its log is shown, its exit code is passed on.
    broken = submit(head, arguments(*common, f"custom.train_jsonl={tmp_path / 'nowhere.jsonl'}"))
    output, errors = broken.communicate(timeout=JOB_S)
    assert broken.returncode == 2, errors
    assert "nowhere.jsonl" in output
    assert re.search(r"rollmatch-run-\w+ FAILED", errors)

    # Ctrl-C with --on-interrupt stop: the driver finishes its window and saves.
    first = submit(head, ["--on-interrupt", "stop", *arguments(*common, "training.max_steps=500")])
    end = time.monotonic() + JOB_S
    while not trained_steps(run):
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < end, f"no optimizer step within {JOB_S} s"
        time.sleep(0.5)
    first.send_signal(signal.SIGINT)
    output, errors = first.communicate(timeout=JOB_S)
    assert first.returncode == 130, errors
    assert "STOPPED" in errors
    (checkpoint,) = run.glob("checkpoint-*")
    reached = int(checkpoint.name.removeprefix("checkpoint-"))

    # The plain command continues where the other stopped, and follows to the end by itself.
    words = ["--address", head.address, "--runtime-env", "configs/runtime_env.yaml", "--working-dir", "."]
    more = [f"training.max_steps={reached + 1}", "cluster.address=auto"]
    command = ["python", "-m", "deploy.cli", "train", "--config", "configs/demo.yaml", *arguments(*common, *more)]
    second = ray_job(head, "submit", *words, "--", *command)
    assert second.returncode == 0, second.stdout[-3000:] + second.stderr[-3000:]
    assert trained_steps(run) == list(range(1, reached + 2)), (
        "resumed after the last step, none repeated and none left out"
    )
    assert json.loads((run / "summary.json").read_text())["steps"] == reached + 1
    assert '"steps"' in second.stdout, "the job's own last line came through"
