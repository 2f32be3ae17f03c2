"""N rollout actors behind one queue: routing, deadlines, restarts, weight sync.

    STARTING ──start answered──► STALE ──sync attested──► SYNCED
        ▲                          ▲                        │
        │ restart (limit, back-off)│ sync failed            │ call failed or deadline passed
        └──────── DEAD ◄───────────┴────────────────────────┘

`_set_state` is the only writer. Only SYNCED actors get requests. A request that an actor owed when it died goes back
to the front of the queue, so it is answered exactly once.

| who waits | for what | who ends the wait |
|---|---|---|
| `poll` | the next outcome | an actor; or `request_timeout_s` without any, which kills that actor |
| `sync` | every actor's attestation | the actors; or `sync_timeout_s`, which kills the late ones |
| `start` | every engine | the engines; or `startup_timeout_s` |
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from actors.engine import LoadReport
from actors.published import PublishedWeights
from actors.rollout_actor import ActorReady, Outcome
from actors.status import ActorStatus
from protocol.contracts import RequestKey, RolloutRequest, WeightsManifest
from protocol.errors import DeadlineError, EngineError, InfrastructureFailure, SyncError

log = logging.getLogger("rollmatch.pool")


class ActorState(StrEnum):
    STARTING = "starting"
    STALE = "stale"
    SYNCED = "synced"
    DEAD = "dead"


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """Limits of the pool; see `rollout.*` and `sync.*` in the configuration."""

    num_actors: int
    max_in_flight_per_actor: int
    startup_timeout_s: float
    request_timeout_s: float
    sync_timeout_s: float
    max_restarts: int
    restart_backoff_s: float = 1.0


@dataclass(slots=True)
class _Member:
    """One slot of the pool; its actor changes when it is restarted."""

    name: str
    handle: Any
    state: ActorState = ActorState.STARTING
    owed: dict[RequestKey, RolloutRequest] = field(default_factory=dict)
    streams: list[Any] = field(default_factory=list)
    restarts: int = 0
    causes: Counter[str] = field(default_factory=Counter)
    version: int = -1
    last_progress: float = field(default_factory=time.monotonic)


class RolloutPool:
    """Driver-side owner of the actors. `spawn(name)` creates one Ray actor; `deploy` knows where it may live."""

    def __init__(self, settings: PoolSettings, spawn: Callable[[str], Any], warmup: RolloutRequest | None) -> None:
        self._settings = settings
        self._spawn = spawn
        self._warmup = warmup
        self._queue: deque[RolloutRequest] = deque()
        self._open_since: dict[RequestKey, float] = {}
        self._members: list[_Member] = []
        self.published = PublishedWeights()
        self.num_restarts = 0

    def start(self) -> list[ActorReady]:
        """Starts all engines at once; EngineError or DeadlineError when one does not come up."""
        self._members = [self._new_member(f"actor-{i}") for i in range(self._settings.num_actors)]
        return [self._await_ready(member, call) for member, call in [(m, self._begin(m)) for m in self._members]]

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        """Queues requests and hands out what fits."""
        self._queue.extend(requests)
        self._open_since.update(dict.fromkeys((request.key for request in requests), time.monotonic()))
        self._route()

    @property
    def num_open(self) -> int:
        """Requests queued or owed."""
        return len(self._queue) + sum(len(member.owed) for member in self._members)

    def states(self) -> dict[str, ActorState]:
        """State of each actor, by name."""
        return {member.name: member.state for member in self._members}

    def status(self) -> list[ActorStatus]:
        """What each actor is and did, for dashboards."""
        return [
            ActorStatus(
                name=member.name,
                state=member.state,
                version=member.version,
                num_owed=len(member.owed),
                restarts=dict(member.causes),
                idle_s=time.monotonic() - member.last_progress,
            )
            for member in self._members
        ]

    @property
    def oldest_request_s(self) -> float:
        """Seconds since the oldest open request was submitted; 0 without one."""
        return time.monotonic() - next(iter(self._open_since.values())) if self._open_since else 0.0

    def poll(self, timeout_s: float = 1.0) -> list[tuple[Outcome, Any]]:
        """Outcomes that arrived, each with the reference of its segment (None without one)."""
        streams = {stream: member for member in self._members for stream in member.streams}
        if not streams:
            return []
        ready, _ = ray.wait(list(streams), num_returns=1, timeout=timeout_s, fetch_local=False)
        outcomes = [item for stream in ready for item in self._drain(streams[stream], stream)]
        self._kill_stalled()
        self._route()
        return outcomes

    def sync(self, manifest: WeightsManifest, refs: Sequence[Any]) -> list[LoadReport]:
        """Loads a publish everywhere and attests it. An actor that fails is restarted and synced in full."""
        self.published.update(manifest, refs)
        calls = [(m, m.handle.load_weights.remote(manifest, list(refs))) for m in self._live()]
        reports = []
        for member, call in calls:
            self._set_state(member, ActorState.STALE)
            try:
                reports.append(self._attest(member, call, manifest))
            except (InfrastructureFailure, SyncError) as error:
                self._restart(member, error)
        self._route()
        return reports

    def serve_start_checkpoint(self) -> None:
        """Lets the engines answer with the checkpoint they started from: evaluation without a learner."""
        for member in self._live():
            self._set_state(member, ActorState.SYNCED)

    def close(self) -> None:
        """Kills every actor; idempotent."""
        for member in self._members:
            ray.kill(member.handle)
            member.streams.clear()
        self._members.clear()

    def _live(self) -> list[_Member]:
        return [member for member in self._members if member.state is not ActorState.DEAD]

    def _new_member(self, name: str) -> _Member:
        return _Member(name=name, handle=self._spawn(name))

    def _begin(self, member: _Member) -> Any:
        return member.handle.start.remote(self._warmup)

    def _await_ready(self, member: _Member, call: Any) -> ActorReady:
        ready: ActorReady = _get(call, self._settings.startup_timeout_s, f"{member.name} to start its engine")
        member.version, member.last_progress = ready.version, time.monotonic()
        self._set_state(member, ActorState.STALE)
        return ready

    def _attest(self, member: _Member, call: Any, manifest: WeightsManifest) -> LoadReport:
        what = f"{member.name} to load version {manifest.version}"
        report: LoadReport = _get(call, self._settings.sync_timeout_s, what)
        if (report.version, report.bucket_checksums) != (manifest.version, manifest.bucket_checksums):
            raise SyncError(
                f"{member.name}: serves version {report.version} with checksums {report.bucket_checksums[:1]}..., "
                f"published was {manifest.version} with {manifest.bucket_checksums[:1]}...; the engine is restarted"
            )
        self._set_state(member, ActorState.SYNCED)
        member.version, member.last_progress = report.version, time.monotonic()
        return report

    def _route(self) -> None:
        """Hands queued requests in even shares to the synced actors that owe nothing, up to their limit.

        An actor answers its calls one after another, so a call must be a whole batch: a request that was sent behind
        the running batch would be decoded alone.
        """
        while self._queue:
            idle = [m for m in self._members if m.state is ActorState.SYNCED and not m.owed]
            if not idle:
                return
            member = idle[0]
            share = min(-(-len(self._queue) // len(idle)), self._settings.max_in_flight_per_actor)
            batch = [self._queue.popleft() for _ in range(share)]
            member.owed.update({request.key: request for request in batch})
            member.last_progress = time.monotonic()
            method = member.handle.rollout.options(num_returns="streaming")
            member.streams.append(method.remote(batch))

    def _drain(self, member: _Member, stream: Any) -> list[tuple[Outcome, Any]]:
        """Everything the stream has now. A failed stream restarts its actor."""
        outcomes: list[tuple[Outcome, Any]] = []
        try:
            while ray.wait([stream], timeout=0, fetch_local=False)[0]:
                outcome: Outcome = _get(next(stream), self._settings.request_timeout_s, f"an outcome of {member.name}")
                segment = next(stream) if outcome.meta is not None else None
                member.owed.pop(outcome.key)
                self._open_since.pop(outcome.key)
                member.last_progress = time.monotonic()
                outcomes.append((outcome, segment))
        except StopIteration:
            member.streams.remove(stream)
        except InfrastructureFailure as error:
            self._restart(member, error)
        return outcomes

    def _kill_stalled(self) -> None:
        limit = self._settings.request_timeout_s
        for member in self._live():
            silent = time.monotonic() - member.last_progress
            if member.owed and silent > limit:
                error = DeadlineError(
                    f"{member.name}: {len(member.owed)} requests owed and no outcome for {silent:.0f} s "
                    f"(rollout.request_timeout_s is {limit:.0f}); the actor is restarted"
                )
                self._restart(member, error)

    def _restart(self, member: _Member, cause: Exception) -> None:
        """Replaces a member's actor, gives its requests back to the queue, syncs the new one in full."""
        self._set_state(member, ActorState.DEAD)
        member.causes[type(cause).__name__] += 1
        ray.kill(member.handle)
        self._queue.extendleft(reversed(member.owed.values()))
        member.owed.clear()
        member.streams.clear()
        if member.restarts >= self._settings.max_restarts:
            raise EngineError(
                f"{member.name}: failed {member.restarts + 1} times (rollout.max_restarts is "
                f"{self._settings.max_restarts}); last cause: {cause}"
            ) from cause
        limit = self._settings.max_restarts
        log.warning("%s is restarted (%d of %d): %s", member.name, member.restarts + 1, limit, cause)
        time.sleep(self._settings.restart_backoff_s * 2**member.restarts)
        member.restarts += 1
        self.num_restarts += 1
        member.handle = self._spawn(f"{member.name}-{member.restarts}")
        self._set_state(member, ActorState.STARTING)
        try:
            self._await_ready(member, self._begin(member))
            if self.published.latest is not None:
                manifest, refs = self.published.full()
                self._attest(member, member.handle.load_weights.remote(manifest, refs), manifest)
        except (InfrastructureFailure, SyncError) as error:
            self._restart(member, error)

    def _set_state(self, member: _Member, state: ActorState) -> None:
        member.state = state


def _get(ref: Any, timeout_s: float, what: str) -> Any:
    """`ray.get` with a deadline; infrastructure trouble becomes EngineError, our own errors pass with their type."""
    try:
        return ray.get(ref, timeout=timeout_s)
    except GetTimeoutError as error:
        message = f"waited {timeout_s:.0f} s for {what}; raise the timeout or look at the actor's log"
        raise DeadlineError(message) from error
    except RayActorError as error:
        raise EngineError(f"lost the process while waiting for {what}: {error}") from error
    except RayTaskError as error:
        cause = error.cause
        if isinstance(cause, SyncError | InfrastructureFailure):
            raise cause from error
        raise
