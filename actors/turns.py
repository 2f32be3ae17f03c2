"""Engines leave the device that they share with the learner (`cluster.colocate`).

| who waits | for what | who ends the wait |
|---|---|---|
| `leave` | a start or a load under way, whose engine would come back beside the learner | the engine; its deadline |
| `leave` | the engine's memory | the engine; `sync.timeout_s` |

Whoever does not keep its deadline is restarted when it is the engines' turn again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from actors.member import ActorState, Member
from actors.ray_calls import get
from protocol.errors import DeadlineError, InfrastructureFailure, SyncError

Fail = Callable[[Member, Exception], None]


def leave(members: Sequence[Member], timeout_s: float, fail: Fail, *, last: bool) -> None:
    """Waits for every engine to have left. `last`: the run ends, so nobody waits for an engine that is starting."""
    for member in members:
        if last and member.state is ActorState.STARTING:
            fail(member, DeadlineError(f"{member.name}: was starting when the run was asked to end"))
        elif (call := member.call) is not None:
            _await(member, call.ref, call.left_s, call.what, fail)
    leaving = [(member, member.handle.sleep.remote()) for member in members if member.has_process]
    for member, ref in leaving:
        _await(member, ref, timeout_s, f"{member.name} to leave its device (sync.timeout_s)", fail)


def _await(member: Member, ref: Any, limit_s: float, what: str, fail: Fail) -> None:
    try:
        get(ref, limit_s, what)
    except (InfrastructureFailure, SyncError) as error:
        fail(member, error)
