"""Members of a pool, for tests."""

from __future__ import annotations

from actors.member import ActorState, Member


def synced(name: str = "actor-0") -> Member:
    """One that takes requests."""
    member = Member(name)
    for state in (ActorState.STARTING, ActorState.STALE, ActorState.SYNCED):
        member.enter(state)
    return member
