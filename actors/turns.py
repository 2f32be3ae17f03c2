"""Engines leave the device that they share with the learner (`cluster.colocate`).

| who waits | for what | who ends the wait |
|---|---|---|
| `leave` | a start or a load under way, whose engine would come back beside the learner | the engine; its deadline |
| `leave` | the engine's memory | the engine; `sync.timeout_s` |

Whoever does not keep its deadline is restarted when it is the engines' turn again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

from actors.member import ActorState, Member
from actors.ray_calls import get
from protocol.errors import DeadlineError, EngineError, InfrastructureFailure, SyncError

log = logging.getLogger("rollmatch.pool")

Fail = Callable[[Member, Exception], None]


def leave(members: Sequence[Member], timeout_s: float, fail: Fail, *, last: bool) -> None:
    """Waits for every engine to have left; `fail` restarts one that does not, or says that too few are left.

    `last`: the run ends. Nobody waits for an engine that is starting, and how many are left does not matter any more.
    """

    def end(member: Member, error: Exception) -> None:
        try:
            fail(member, error)
        except EngineError as too_few:
            if not last:
                raise
            log.warning("%s", too_few)

    for member in members:
        if last and member.state is ActorState.STARTING:
            end(member, DeadlineError(f"{member.name}: was starting when the run was asked to end"))
        elif (call := member.call) is not None:
            _await(member, call.ref, call.left_s, call.what, end)
    leaving = [(member, member.handle.sleep.remote()) for member in members if member.has_process]
    for member, ref in leaving:
        _await(member, ref, timeout_s, f"{member.name} to leave its device (sync.timeout_s)", end)


def _await(member: Member, ref: Any, limit_s: float, what: str, fail: Fail) -> None:
    try:
        get(ref, limit_s, what)
    except (InfrastructureFailure, SyncError) as error:
        fail(member, error)
