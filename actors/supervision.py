"""When an actor counts as stalled, is restarted, is given up: decisions on a `Member`, without Ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from actors.engine_loop import InFlight
from actors.member import ActorState, Member
from protocol.errors import DeadlineError, EngineError

log = logging.getLogger("rollmatch.pool")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Limits of the pool; see `rollout.*` and `sync.*` in the configuration."""

    num_actors: int
    max_in_flight_per_actor: int
    startup_timeout_s: float
    stall_timeout_s: float
    sync_timeout_s: float
    max_restarts: int
    max_retries: int
    min_healthy: int = 1
    in_flight: InFlight = "drain"
    heartbeat_s: float = 10.0
    restart_backoff_s: float = 1.0
    max_backoff_s: float = 60.0


def judge(member: Member, limit_s: float, now: float) -> None:
    """Moves a live member between SYNCED and SUSPECT, at half of the limit for progress.

    Raises DeadlineError when it showed none for the whole limit, or when its start or load is overdue.
    """
    if member.call is not None and now > member.call.deadline:
        raise DeadlineError(f"gave up waiting for {member.call.what}; the actor is restarted")
    if not member.is_live:
        return
    silent = now - member.progressed_at
    if silent > limit_s:
        raise DeadlineError(
            f"{member.name}: owes {len(member.owed)} requests, and its engine did no step or answered no heartbeat "
            f"for {silent:.0f} s (rollout.request_timeout_s is {limit_s:.0f}); the actor is restarted"
        )
    if member.state is ActorState.SYNCED and silent > limit_s / 2:
        member.enter(ActorState.SUSPECT)
    elif member.state is ActorState.SUSPECT and silent <= limit_s / 2:
        member.enter(ActorState.SYNCED)


def plan_restart(
    member: Member, members: Sequence[Member], limits: PoolSettings, cause: Exception, *, counts: bool = True
) -> None:
    """Counts a failure of a DEAD member and sets when it starts again; the pause doubles with each failure in a row.

    One that narrows down which request kills does not count: of those there are as many as groups in groups.

    Raises EngineError when it is given up and fewer than `min_healthy` members are left.
    """
    member.failures += counts
    member.causes[type(cause).__name__] += 1
    member.given_up = member.failures > limits.max_restarts
    if not member.given_up:
        pause = min(limits.restart_backoff_s * 2 ** (member.failures - 1), limits.max_backoff_s)
        member.retry_at = time.monotonic() + pause
        log.warning("%s is restarted in %.0f s (failure %d in a row): %s", member.name, pause, member.failures, cause)
        return
    left = sum(not other.given_up for other in members)
    message = (
        f"{member.name}: failed {member.failures} times without an answer in between (rollout.max_restarts is "
        f"{limits.max_restarts}) and is given up; {left} of {limits.num_actors} actors are left, "
        f"rollout.min_healthy is {limits.min_healthy}; last cause: {cause}"
    )
    if left < limits.min_healthy:
        raise EngineError(message) from cause
    log.error(message)
