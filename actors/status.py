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
    restarts: Mapping[str, int]
    """Restarts so far, by the class of their cause: SyncError, DeadlineError, EngineError."""
    idle_s: float
    """Seconds since it last started, loaded weights or answered a request."""
