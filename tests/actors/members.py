"""Members of a pool, for tests."""

from __future__ import annotations

from actors.member import ActorState, Member
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


def synced(name: str = "actor-0") -> Member:
    """One that takes requests."""
    member = Member(name)
    for state in (ActorState.STARTING, ActorState.STALE, ActorState.SYNCED):
        member.enter(state)
    return member
