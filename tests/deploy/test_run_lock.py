"""A run's folder belongs to one process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.run_lock import alone
from protocol.errors import ConfigError


def test_a_run_that_lives_is_not_started_again(tmp_path: Path) -> None:
    with (
        alone(tmp_path / "runs" / "demo"),
        pytest.raises(ConfigError, match=r"^training\.run_name: .*demo belongs to a run that lives \(process \d+ on "),
        alone(tmp_path / "runs" / "demo"),
    ):
        pytest.fail("two drivers have one folder")
    with alone(tmp_path / "runs" / "demo"), alone(tmp_path / "runs" / "another"):
        pass


def test_a_driver_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys; from deploy.run_lock import alone\n"
        "with alone(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "demo")], check=False, timeout=60)
    assert (tmp_path / ".demo.lock").read_text().startswith("process ")
    with alone(tmp_path / "demo"):
        pass


def test_a_driver_on_another_machine_is_given_time_to_be_forgotten(tmp_path: Path) -> None:
    with alone(tmp_path / "demo"):
        (tmp_path / ".demo.lock").write_text("process 7 on elsewhere\n")
        with (
            pytest.raises(ConfigError, match=r"\(process 7 on elsewhere\)"),
            alone(tmp_path / "demo", lease_s=0.05),
        ):
            pytest.fail("two drivers have one folder")
