"""When a checkpoint is written and of which moment; whole loops run in test_controller."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from actors.loop import LoopSettings, LoopState
from actors.saver import Saver
from protocol.errors import DataFailure, Interrupted, LearnerError


class Parts:
    """A saver, and what it asked of the loop's other parts, in order."""

    def __init__(self, *, leaving: bool = False, failure: Exception | None = None, **settings: Any) -> None:
        self.done: list[object] = []
        self.state = LoopState(step=4, trained=16)
        self.intake = SimpleNamespace(boundary=20, admit=lambda: self.done.append("admit"))
        self._failure = failure
        sync = SimpleNamespace(leave_device=lambda: self.done.append("leave device"), is_leaving=lambda: leaving)
        keeper = SimpleNamespace(due=lambda step: step % 10 == 0, snapshot=self._snapshot)
        observer = SimpleNamespace(phase=lambda *_: None, event=self._event)
        numbers = {"batch_size": 4, "m_steps": 2, "max_steps": 40, "max_staleness": 0, "eval_steps": 0, "top_k": 1}
        parts: Any = (self.intake, sync, keeper, observer, self.state, self._in_thread)
        self.saver = Saver(LoopSettings(**numbers, capacity=None, **settings), *parts, boundary=16)

    def _snapshot(self, state: LoopState, position: int) -> Any:
        self.done.append(("snapshot", state.step, position))

        def write() -> str:
            if self._failure is not None:
                raise self._failure
            self.done.append("write")
            return f"step-{state.step}"

        return write

    def _in_thread(self, work: Any) -> Any:
        self.done.append("in the learner's thread")
        return work()

    def _event(self, kind: str, **told: object) -> None:
        self.done.append((kind, told))


def test_a_checkpoint_remembers_where_its_window_ended_whatever_is_answered_meanwhile() -> None:
    parts = Parts()
    parts.saver.window_ended()
    parts.intake.boundary = 21
    parts.saver.save()
    assert parts.done == [
        "leave device",
        ("snapshot", 4, 20),
        "admit",
        "in the learner's thread",
        "write",
        ("checkpoint", {"path": "step-4", "position": 20}),
    ]


def test_nothing_is_asked_of_engines_that_share_the_device_while_a_checkpoint_is_written() -> None:
    """A request would bring them back beside the learner."""
    parts = Parts(takes_turns=True)
    parts.saver.save()
    assert "admit" not in parts.done
    assert "write" in parts.done


def test_a_checkpoint_of_a_run_that_ends_asks_for_no_more_rollouts_and_takes_in_none() -> None:
    parts = Parts(leaving=True)
    parts.saver.save()
    assert parts.done[:3] == ["leave device", ("snapshot", 4, 16), "write"]


def test_a_window_that_was_left_half_trained_is_not_saved() -> None:
    parts = Parts()
    parts.state.step += 1  # the first of two M-steps
    parts.saver.save_before(Interrupted("asked to stop"), stopped=True)
    assert parts.done == []


def test_a_moment_is_saved_once_and_a_run_that_trained_nothing_only_where_it_was_stopped() -> None:
    trained = Parts()
    trained.saver.save_before(DataFailure("too many records"), stopped=False)
    assert "write" in trained.done
    parts = Parts()
    parts.state.trained = 0
    parts.saver.save_before(DataFailure("too many records"), stopped=False)
    assert parts.done == []
    parts.saver.save_before(Interrupted("asked to stop"), stopped=True)
    assert parts.done.count("write") == 1
    parts.saver.save_before(Interrupted("asked to stop"), stopped=True)
    assert parts.done.count("write") == 1


@pytest.mark.parametrize("failure", [LearnerError("its rank is gone"), OSError("no space left on device")])
def test_a_checkpoint_that_cannot_be_written_hides_no_failure_but_is_told_to_who_asked_to_stop(
    failure: Exception,
) -> None:
    Parts(failure=failure).saver.save_before(DataFailure("too many records"), stopped=False)
    with pytest.raises(type(failure)):
        Parts(failure=failure).saver.save_before(Interrupted("asked to stop"), stopped=True)


def test_a_checkpoint_is_due_where_the_keeper_says_so_and_after_the_last_window_where_that_is_asked_for() -> None:
    for step, save_last, is_last, written in (
        (10, False, False, 1),
        (11, True, False, 0),
        (11, False, True, 0),
        (11, True, True, 1),
    ):
        parts = Parts(save_last=save_last)
        parts.state.step = step
        parts.saver.save_if_due(is_last=is_last)
        assert parts.done.count("write") == written
