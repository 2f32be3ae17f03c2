"""What the pool tells dashboards about an actor: plain values, taken by the driver's thread."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorStatus:
    """One slot of the pool at one moment. The name stays when its process is replaced."""

    name: str
    state: str
    """An `ActorState`."""
    version: int
    """Policy version that it attested last; -1 before it has started."""
    num_owed: int
    """Requests that it holds."""
    num_running: int
    """Those of them that its engine runs, as it said last."""
    restarts: Mapping[str, int]
    """Failures so far, by the class of their cause: ActorLost, DeadlineError, SyncError, EngineError."""
    given_up: bool
    """Failed too often in a row: it is not restarted any more."""
    pid: int
    idle_s: float
    """Seconds since its engine was last seen to work, or to have nothing to do; 0 while it has none."""
