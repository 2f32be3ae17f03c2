"""From admission to a whole window: what it tells of its answers; whole loops run in test_controller."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from actors.outcome import Outcome
from tests.actors.test_controller import build


def test_each_answer_of_training_is_told_once_also_where_its_record_is_quarantined() -> None:
    """What is recorded, counted by actor and dumped comes from here."""
    loop = build(validation=2, fails=lambda answered: answered == 5)
    told: list[Outcome] = []
    loop.observer.outcome = told.append  # type: ignore[method-assign]
    loop.controller.run()
    keys = [str(outcome.key) for outcome in told if outcome.meta is not None]

    assert sorted(f"ref of {key}" for key in keys) == sorted(ref for window in loop.learner.trained for ref in window)
    assert [outcome for outcome in told if outcome.failure] == loop.observer.quarantined


def test_a_request_that_generated_nothing_is_no_short_rollout() -> None:
    loop = build(max_steps=1, fails=lambda answered: answered == 2)
    loop.controller.run()
    ((_, metrics),) = loop.observer.steps
    assert loop.observer.quarantined
    assert metrics["rollout/gen_new_tokens_mean"] == 50


def test_a_windows_wait_for_rollouts_is_the_time_that_its_collecting_took(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, now = build(max_steps=2), 0.0
    poll = loop.controller._pool.poll

    def slowly(timeout_s: float = 1.0) -> list[tuple[Outcome, Any]]:
        nonlocal now
        now += 1.0
        return poll(timeout_s)

    monkeypatch.setattr("actors.intake.time", SimpleNamespace(monotonic=lambda: now))
    loop.controller._pool.poll = slowly  # type: ignore[method-assign]
    loop.controller.run()
    waits = [metrics["time/wait_rollouts_s"] for _, metrics in loop.observer.steps]
    assert waits == [2.0, 2.0], "four requests are answered in two polls"
