"""One slot of the pool: its actor, what it owes, and the states it goes through.

                spawn               start answered            sync attested
      DEAD ──────────────► STARTING ───────────────► STALE ──────────────────► SYNCED ◄───────────► SUSPECT
       ▲ └─► (given up)        │                       ▲ │ ▲                     │ │   no progress for   │
       │                       │                       │ │ └─ a newer publish ───┘ │   half the limit;   │
       └───────────────────────┴───────────────────────┴─┴─────── any failure ─────┴───── progress ──────┘

`Member.enter` is the only writer of a state and refuses every arrow that is not drawn. Only SYNCED actors get requests.
A member that failed more than `max_restarts` times without an answer in between is given up and stays DEAD.
"""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from actors.engine import EngineProgress
from actors.status import ActorStatus
from protocol.contracts import RequestKey
from protocol.unread import AnyRequest
from protocol.weights import WeightsManifest


class ActorState(StrEnum):
    """See the picture above."""

    STARTING = "starting"
    STALE = "stale"
    SYNCED = "synced"
    SUSPECT = "suspect"
    DEAD = "dead"


_ARROWS = {
    ActorState.DEAD: {ActorState.STARTING},
    ActorState.STARTING: {ActorState.STALE, ActorState.DEAD},
    ActorState.STALE: {ActorState.SYNCED, ActorState.STALE, ActorState.DEAD},
    ActorState.SYNCED: {ActorState.STALE, ActorState.SUSPECT, ActorState.DEAD},
    ActorState.SUSPECT: {ActorState.STALE, ActorState.SYNCED, ActorState.DEAD},
}


@dataclass(slots=True)
class Call:
    """A start or a load that was asked for: what it is, until when, and what it must bring."""

    ref: Any
    what: str
    deadline: float
    manifest: WeightsManifest | None = None
    """The publish that a load must attest; None for a start."""

    @property
    def left_s(self) -> float:
        """Seconds until its deadline; 0 behind it."""
        return max(0.0, self.deadline - time.monotonic())


class Collect(NamedTuple):
    """A `collect` call: its two objects."""

    segments: Any
    """Never fetched here."""
    report: Any


@dataclass(slots=True)
class Member:
    """Mutable record; `RolloutPool` moves it."""

    name: str
    state: ActorState = ActorState.DEAD
    handle: Any = None
    pid: int = 0
    version: int | None = None
    """Policy version that its engine attested last; None before the first."""
    call: Call | None = None
    collecting: Collect | None = None
    """The call that brings the next group of its answers; there while it owes any."""
    owed: dict[RequestKey, AnyRequest] = field(default_factory=dict)
    num_suspects: int = 0
    """Size of the group that it was sent, which killed actors before: nothing else is sent until all are answered."""
    heartbeat: Any = None
    heartbeat_sent: float = 0.0
    progress: EngineProgress | None = None
    progressed_at: float = 0.0
    """When the engine was last seen to move, or had nothing to do; monotonic seconds."""
    failures: int = 0
    """In a row, without an answer in between."""
    causes: Counter[str] = field(default_factory=Counter)
    """Failures so far, by the class of their cause."""
    retry_at: float = 0.0
    given_up: bool = False

    def enter(self, state: ActorState) -> None:
        """Moves along one arrow of the picture."""
        assert state in _ARROWS[self.state], f"{self.name}: {self.state} -> {state} is not an arrow of the picture"
        self.state = state

    @property
    def process(self) -> str:
        """Name of the process that fills the slot now: `actor-0`, and `actor-0-2` after two failures."""
        return f"{self.name}-{self.causes.total()}" if self.causes else self.name

    @property
    def takes_requests(self) -> bool:
        return self.state is ActorState.SYNCED and not self.num_suspects

    @property
    def has_process(self) -> bool:
        """Its actor was started, and not ended since."""
        return self.state is not ActorState.DEAD

    @property
    def is_live(self) -> bool:
        """Has an engine that can be sent weights."""
        return self.state in (ActorState.STALE, ActorState.SYNCED, ActorState.SUSPECT)

    @property
    def is_idle(self) -> bool:
        """Has an engine that loads nothing now."""
        return self.is_live and self.call is None

    def serves(self, version: int | None) -> bool:
        """Its engine attested this version last, and loads no other."""
        return self.call is None and self.version == version

    def is_due(self, now: float) -> bool:
        """Its back-off is over."""
        return self.state is ActorState.DEAD and not self.given_up and now >= self.retry_at

    def status(self) -> ActorStatus:
        """What is shown of it."""
        return ActorStatus(
            name=self.name,
            state=self.state,
            version=-1 if self.version is None else self.version,
            num_owed=len(self.owed),
            num_running=self.progress.running if self.progress else 0,
            restarts=dict(self.causes),
            given_up=self.given_up,
            pid=self.pid,
            idle_s=time.monotonic() - self.progressed_at if self.is_live else 0.0,
        )

    def moved(self) -> None:
        """It was seen to work."""
        self.progressed_at = time.monotonic()

    def heard(self, progress: EngineProgress) -> None:
        """What a heartbeat said."""
        before, self.progress, self.heartbeat = self.progress, progress, None
        # A load has a deadline of its own, and an engine that owes nothing does no steps.
        excused = self.call is not None or not self.owed
        if excused or before is None or progress.num_steps > before.num_steps:
            self.moved()

    def answered(self, progress: EngineProgress) -> Any:
        """A group of answers came, which ends a row of failures; where its segments are."""
        assert self.collecting is not None
        segments = self.collecting.segments
        self.collecting, self.progress, self.failures = None, progress, 0
        self.moved()
        return segments

    def forget(self) -> None:
        """Drops everything that belonged to a process that is gone."""
        self.handle = self.call = self.collecting = self.heartbeat = self.progress = self.version = None
        self.owed.clear()
        self.num_suspects = 0
