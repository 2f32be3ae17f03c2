"""From admission to a whole window: what it tells of its answers; whole loops run in test_controller."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from actors.outcome import Outcome
from protocol.errors import ContractError, Interrupted
from protocol.weights import WeightsManifest
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
    assert [metrics["time/rollout_generate_s"] for _, metrics in loop.observer.steps] == waits

    now, loop.observer.steps[:] = 0.0, []
    loop = build(max_steps=1)
    loop.learner.loses, poll = (1, 3), loop.controller._pool.poll
    loop.controller._pool.poll = slowly  # type: ignore[method-assign]
    loop.controller.run()
    ((_, metrics),) = loop.observer.steps
    assert metrics["time/wait_rollouts_s"] == 3.0, "the two that were lost are waited for once more"


def test_descriptions_are_told_of_every_so_many_steps() -> None:
    loop = build(max_steps=5, desc_enabled=True, desc_every=2)
    loop.controller.run()
    told = [step for step, metrics in loop.observer.steps if any(name.startswith("rollout/desc_") for name in metrics)]
    assert told == [1, 3, 5], "a window is counted before its step"


def test_a_stop_ends_the_wait_for_a_window_that_is_never_whole() -> None:
    loop = build()

    def silent(timeout_s: float = 1.0) -> list[tuple[Outcome, Any]]:
        assert not loop.controller.stop, "nobody waits any more"
        loop.controller.stop = bool(loop.controller._pool.num_open)
        return []

    loop.controller._pool.poll = silent  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        loop.controller.run()


def test_a_segment_that_is_older_than_allowed_is_refused_before_it_is_trained() -> None:
    loop = build(max_steps=3, max_staleness=1)
    publish = loop.controller._pool.publish

    def serves_the_first(manifest: WeightsManifest, refs: Sequence[Any]) -> None:
        publish(manifest, refs)
        loop.controller._pool.version = 0

    loop.controller._pool.publish = serves_the_first  # type: ignore[method-assign]
    with pytest.raises(ContractError, match="is too old: first_version=0, last_version=0, training at version=2"):
        loop.controller.run()
    assert len(loop.learner.trained) == 2
