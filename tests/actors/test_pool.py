"""What the pool does between two looks at its actors; whole pools run in tests/faults and tests/integration."""

from __future__ import annotations

import time
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from actors.member import ActorState, Member
from actors.pool import RolloutPool
from actors.supervision import PoolSettings

LIMITS = PoolSettings(
    num_actors=1,
    max_in_flight_per_actor=8,
    startup_timeout_s=60,
    stall_timeout_s=100,
    sync_timeout_s=60,
    max_restarts=5,
    max_retries=1,
)


class Asked:
    """A remote method whose calls never end."""

    def __init__(self) -> None:
        self.calls = 0

    def remote(self, *_: object) -> Any:
        self.calls += 1
        return SimpleNamespace(future=Future)


@pytest.fixture
def handle() -> Any:
    return SimpleNamespace(start=Asked(), progress=Asked(), submit=Asked(), collect=Asked())


def pool_of(member: Member, handle: Any) -> RolloutPool:
    member.handle = handle
    pool = RolloutPool(LIMITS, lambda _: handle, None)
    pool._members = [member]
    return pool


def synced() -> Member:
    member = Member("actor-0")
    for state in (ActorState.STARTING, ActorState.STALE, ActorState.SYNCED):
        member.enter(state)
    return member


def test_an_actor_is_not_blamed_for_silence_while_nobody_asked(handle: Any) -> None:
    """As after a learner's start, or a checkpoint, that took longer than `rollout.request_timeout_s`."""
    member, ago = synced(), time.monotonic() - 10 * LIMITS.stall_timeout_s
    pool = pool_of(member, handle)
    member.progressed_at = pool._watched = ago
    pool.poll(0)
    assert member.state is ActorState.SYNCED
    assert member.progressed_at <= time.monotonic()


def test_an_actor_is_asked_once_it_was_silent_and_restarted_when_it_stays_so(
    handle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.kill", lambda _: None)
    member = synced()
    pool = pool_of(member, handle)
    member.progressed_at = pool._watched - LIMITS.stall_timeout_s / 2
    pool._watched -= 1
    pool.poll(0)
    assert (member.state, handle.progress.calls) == (ActorState.SUSPECT, 1)
    member.progressed_at -= LIMITS.stall_timeout_s
    pool._watched -= 1
    pool.poll(0)
    assert member.state is ActorState.DEAD


def test_no_engine_starts_while_the_learner_has_the_device(handle: Any) -> None:
    member = Member("actor-0")
    pool = pool_of(member, handle)
    pool.sleep()
    pool._watched -= 1
    pool.poll(0)
    assert (member.state, handle.start.calls) == (ActorState.DEAD, 0)
    pool.submit([])
    pool._watched -= 1
    pool.poll(0)
    assert (member.state, handle.start.calls) == (ActorState.STARTING, 1)
