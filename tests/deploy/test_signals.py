"""What a signal does to a run, and what it says."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.signals import LEFT, STOPPING, StopSignals


def controller() -> Any:
    return SimpleNamespace(stop=False)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl_c", "sigterm"])
def test_the_first_signal_is_acknowledged_and_the_second_leaves_at_once(number: signal.Signals) -> None:
    said: list[str] = []
    with StopSignals(said.append) as signals, signals.stop(loop := controller()):
        os.kill(os.getpid(), number)
        assert (loop.stop, said) == (True, [STOPPING])
        with pytest.raises(KeyboardInterrupt, match=LEFT):
            os.kill(os.getpid(), number)
    assert said == [STOPPING]


def test_where_nothing_can_be_saved_the_first_signal_leaves() -> None:
    said: list[str] = []
    with StopSignals(said.append), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
    assert said == []


def test_behind_the_loop_a_signal_leaves_and_behind_both_the_handlers_are_those_from_before() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    with StopSignals(pytest.fail) as signals:
        with signals.stop(loop := controller()):
            pass
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
        assert not loop.stop
    assert [signal.getsignal(number) for number in numbers] == before


def test_without_a_display_the_first_signal_writes_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    with StopSignals() as signals, signals.stop(controller()):
        os.kill(os.getpid(), signal.SIGINT)
    assert capfd.readouterr().err == f"rollmatch: {STOPPING}\n"


def test_a_stop_is_heeded_also_where_nobody_reads_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr("deploy.signals._STDERR", writer)
    with StopSignals() as signals, signals.stop(loop := controller()):
        os.kill(os.getpid(), signal.SIGTERM)
    assert loop.stop
    os.close(writer)
