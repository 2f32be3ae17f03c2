"""Builds of DeepSpeed's kernel: one at a time, also beside those of other programs, and after one that was killed."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from learner import cpu_adam
from learner.cpu_adam import LONGEST_BUILD_S, alone_in


def test_what_a_build_of_ours_left_when_it_was_killed_does_not_stop_the_next(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys; from learner.cpu_adam import alone_in; folder = pathlib.Path(sys.argv[1])\n"
        "with alone_in(folder): (folder / 'lock').touch(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=120)
    assert (killed.returncode, (tmp_path / "lock").exists()) == (-signal.SIGKILL, True)
    with alone_in(tmp_path):
        assert not (tmp_path / "lock").exists()
        with (tmp_path / "rollmatch.lock").open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_another_programs_build_is_awaited_until_it_is_too_old_to_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark, waits = tmp_path / "lock", []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 1:
            assert mark.exists(), "it may live"
        if len(waits) == 2:
            mark.unlink()

    monkeypatch.setattr(cpu_adam.time, "sleep", wait)
    with alone_in(tmp_path):
        pass  # a build of ours that ended: what it left says nothing about the next mark
    mark.touch()
    with alone_in(tmp_path):
        assert len(waits) == 2
    mark.touch()
    begun = time.time() - LONGEST_BUILD_S - 1
    os.utime(mark, (begun, begun))
    with alone_in(tmp_path):
        assert (len(waits), mark.exists()) == (2, False)


def test_a_folder_without_locks_is_used_and_torchs_mark_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_locks(*_: object) -> NoReturn:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(cpu_adam.fcntl, "flock", no_locks)
    (tmp_path / "lock").touch()
    with alone_in(tmp_path):
        assert (tmp_path / "lock").exists()
    assert "cannot be locked (" in caplog.text
