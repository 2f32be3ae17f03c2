"""What becomes of an actor that is silent or fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.member import ActorState, Call, Member
from actors.supervision import PoolSettings, judge, plan_restart
from protocol.errors import DeadlineError, EngineError
from tests.actors.members import synced

LIMITS = PoolSettings(
    num_actors=2,
    max_in_flight_per_actor=3,
    startup_timeout_s=1,
    stall_timeout_s=10,
    sync_timeout_s=1,
    max_restarts=2,
    max_retries=1,
    min_healthy=1,
)


def test_an_arrow_that_is_not_drawn_is_refused() -> None:
    with pytest.raises(AssertionError, match="dead -> synced is not an arrow"):
        Member("actor-0").enter(ActorState.SYNCED)


def test_a_silent_actor_is_suspect_at_half_the_limit_and_given_no_requests() -> None:
    member = synced()
    member.progressed_at = 100.0
    judge(member, 10, now=105.0)
    assert member.takes_requests
    judge(member, 10, now=105.1)
    assert (member.state, member.takes_requests) == (ActorState.SUSPECT, False)
    member.progressed_at = 101.0
    judge(member, 10, now=106.1)
    assert member.state is ActorState.SUSPECT, "it moved, and was silent for longer than half since"
    member.progressed_at = 106.0
    judge(member, 10, now=111.0)
    assert member.state is ActorState.SYNCED
    judge(member, 10, now=116.0)
    with pytest.raises(DeadlineError, match=r"did no step or answered no heartbeat for 11 s"):
        judge(member, 10, now=117.0)


def test_an_overdue_start_or_load_is_named() -> None:
    member = Member("actor-0")
    member.enter(ActorState.STARTING)
    member.call = Call(ref=None, what="actor-0 to start", deadline=100.0)
    judge(member, 10, now=100.0)
    with pytest.raises(DeadlineError, match="gave up waiting for actor-0 to start; the actor is restarted"):
        judge(member, 10, now=100.1)


def test_pauses_double_and_an_actor_is_given_up_after_its_limit_in_a_row() -> None:
    member, other = synced(), synced("actor-1")
    pauses = []
    for _ in range(LIMITS.max_restarts):
        before = member.retry_at
        plan_restart(member, [member, other], LIMITS, EngineError("x"))
        pauses.append(member.retry_at - before)
    assert pauses[1] == pytest.approx(1.0, abs=0.1), "1 s, then 2 s from about the same moment"
    assert not member.given_up
    plan_restart(member, [member, other], LIMITS, EngineError("x"))
    assert member.given_up
    assert member.causes == {"EngineError": 3}


def test_no_pause_is_longer_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    member = synced()
    member.failures = 7
    plan_restart(member, [member], replace(LIMITS, max_restarts=20), EngineError("x"))
    assert member.retry_at == 1000.0 + LIMITS.max_backoff_s


def test_the_run_ends_when_fewer_than_min_healthy_actors_are_left() -> None:
    member, other = synced(), synced("actor-1")
    other.given_up = True
    member.failures = LIMITS.max_restarts
    with pytest.raises(EngineError, match=r"0 of 2 actors are left, rollout.min_healthy is 1; last cause: gone"):
        plan_restart(member, [member, other], LIMITS, EngineError("gone"))


def test_a_death_that_narrows_down_which_request_kills_does_not_count() -> None:
    member = synced()
    for _ in range(10):
        plan_restart(member, [member], LIMITS, EngineError("x"), counts=False)
    assert (member.failures, member.given_up, member.causes["EngineError"]) == (0, False, 10)
