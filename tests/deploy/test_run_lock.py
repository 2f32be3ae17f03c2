"""A run's folder belongs to one process."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from deploy import run_lock
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


def test_a_driver_on_another_machine_that_is_forgotten_in_time_lets_the_run_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = ExitStack()
    held.enter_context(alone(tmp_path / "demo"))
    (tmp_path / ".demo.lock").write_text("process 7 on elsewhere\n")
    monkeypatch.setattr(run_lock.time, "sleep", lambda _: held.close())
    with alone(tmp_path / "demo", lease_s=60.0):
        assert (tmp_path / ".demo.lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EAGAIN])
def test_a_file_server_that_denies_the_lock_says_that_another_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def denied(*_: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(run_lock.fcntl, "flock", denied)
    with pytest.raises(ConfigError, match="belongs to a run that lives"), alone(tmp_path / "demo", lease_s=0.0):
        pytest.fail("two drivers have one folder")


def test_a_file_system_without_locks_is_told_of_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unknown(*_: object) -> NoReturn:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_lock.fcntl, "flock", unknown)
    with alone(tmp_path / "demo"):
        assert "see to it that no second run of this name is started" in caplog.text


def test_a_folder_that_is_reached_by_a_link_has_the_same_lock(tmp_path: Path) -> None:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "linked").symlink_to(tmp_path / "runs")
    (tmp_path / "same").symlink_to(tmp_path / "runs" / "demo")
    with alone(tmp_path / "runs" / "demo"):
        for name in (tmp_path / "linked" / "demo", tmp_path / "same"):
            with pytest.raises(ConfigError, match="belongs to a run that lives"), alone(name):
                pytest.fail("two drivers have one folder")


def test_a_link_that_a_fresh_start_has_renamed_leaves_both_of_its_folders_locked(tmp_path: Path) -> None:
    (tmp_path / "data" / "demo").mkdir(parents=True)
    (tmp_path / "runs").mkdir()
    named = tmp_path / "runs" / "demo"
    named.symlink_to(tmp_path / "data" / "demo")
    with alone(named):
        named.rename(named.with_name("demo.1"))
        named.mkdir()
        for folder in (named, tmp_path / "data" / "demo", named.with_name("demo.1")):
            with pytest.raises(ConfigError, match="belongs to a run that lives"), alone(folder):
                pytest.fail("two drivers have one folder")
    with alone(named), alone(tmp_path / "data" / "demo"):
        pass


def test_a_link_into_the_folder_that_it_lies_in_is_not_refused_for_its_own_lock(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "same").symlink_to(tmp_path / "demo")
    with alone(tmp_path / "demo" / "same"):
        pass


def test_a_run_does_not_start_above_or_below_one_that_lives(tmp_path: Path) -> None:
    above, below = tmp_path / "exp", tmp_path / "exp" / "seeds" / "1"
    for first, second in ((above, below), (below, above)):
        with (
            alone(first),
            pytest.raises(ConfigError, match=rf"^training\.run_name: .* and {first}, .*one in the other"),
            alone(second),
        ):
            pytest.fail("one would be renamed with the other")
        with alone(second), alone(tmp_path / "exp2"):
            pass
