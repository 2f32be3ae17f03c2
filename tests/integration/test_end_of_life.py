"""A run leaves nothing behind: no process after success, failure or Ctrl-C, and a checkpoint after the last."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from deploy.local_ray import LOOPBACK
from tests.integration.conftest import ROOT, processes_with, read_lines

pytestmark = pytest.mark.integration


def start(arguments: list[str], marker: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "deploy.cli", "train", "--config", "configs/demo.yaml", *arguments]
    environment = os.environ | {"ROLLMATCH_TEST_MARKER": marker}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for_step(path: Path, process: subprocess.Popen[str], deadline_s: float = 240) -> None:
    end = time.monotonic() + deadline_s
    while not (path.exists() and any("loss/ce" in line for line in read_lines(path))):
        assert process.poll() is None, f"the run ended with {process.returncode}: {process.communicate()[1][-2000:]}"
        assert time.monotonic() < end, f"no optimizer step within {deadline_s} s"
        time.sleep(0.5)


def open_to_the_network(marker: str) -> list[str]:
    """Processes with a port that is not on the loopback interface, once per port."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("ROLLMATCH_TEST_MARKER") == marker:
                ports = [at for at in process.net_connections("tcp") if at.status == psutil.CONN_LISTEN]
                found += [process.name() for at in ports if at.laddr.ip.removeprefix("::ffff:") != "127.0.0.1"]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue  # it ended meanwhile
    return found


def wait_until_gone(marker: str, deadline_s: float = 30) -> list[str]:
    """What is still alive at the deadline: Ray reaps its workers a moment after the driver."""
    end = time.monotonic() + deadline_s
    while (alive := processes_with(marker)) and time.monotonic() < end:
        time.sleep(0.5)
    return alive


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
def test_a_run_keeps_to_this_machine_and_a_signal_checkpoints_exits_130_and_leaves_no_process(
    arguments: Callable[..., list[str]], tmp_path: Path, number: signal.Signals
) -> None:
    marker = uuid.uuid4().hex
    process = start(arguments("training.max_steps=500", "custom.val_jsonl=null"), marker)
    wait_for_step(tmp_path / "run" / "metrics.jsonl", process)
    assert len(found := open_to_the_network(marker)) <= 1, f"torch's rendezvous alone, docs/security.md says: {found}"
    os.killpg(process.pid, number)  # what a terminal, a shell's `timeout` and a job manager do
    _, errors = process.communicate(timeout=180)

    assert process.returncode == 130, errors[-2000:]
    assert "asked to stop" in errors
    assert list((tmp_path / "run").glob("checkpoint-*/merged/model.safetensors"))
    assert not wait_until_gone(marker)


def test_success_leaves_no_process_and_without_learning_no_score_moved(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    marker = uuid.uuid4().hex
    process = start(arguments("training.learning_rate=0"), marker)
    output, errors = process.communicate(timeout=300)

    assert process.returncode == 0, errors[-2000:]
    printed = json.loads(output.strip().splitlines()[-1])
    assert {"f1_before", "f1_after", "steps", "rollouts", "policy_versions", "wall_s"} <= set(printed)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["policy_versions"] == 2, "nothing moved although two versions were published"
    timings = {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
    before, after = ({k: v for k, v in summary[at].items() if k not in timings} for at in ("before", "after"))
    assert before == after
    assert not wait_until_gone(marker)


def test_a_run_that_publishes_nothing_fails_with_the_reason_and_leaves_its_logs_and_no_process(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    marker = uuid.uuid4().hex
    process = start(arguments("sync.debug_skip_publish=true", "custom.val_jsonl=null"), marker)
    _, errors = process.communicate(timeout=300)

    assert process.returncode == 1
    assert "NothingChangedError" in errors
    assert "sync.debug_skip_publish" in errors
    assert not wait_until_gone(marker)
    assert any(path.name.startswith("worker-") for path in (tmp_path / "run" / "ray_logs").iterdir())


@pytest.mark.parametrize("after_s", [1.5, 3.0, 5.0])
def test_a_driver_that_goes_while_ray_starts_leaves_none_of_rays_daemons(after_s: float) -> None:
    marker = uuid.uuid4().hex
    command = [sys.executable, "-m", "deploy.local_ray", json.dumps({"num_cpus": 1, "object_store_memory": 200 << 20})]
    program = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | LOOPBACK | {"ROLLMATCH_TEST_MARKER": marker},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(after_s)
    assert program.stdin is not None
    program.stdin.close()
    program.wait(timeout=120)

    assert not wait_until_gone(marker, deadline_s=2), "it ends them itself: nothing is left to notice anything"
