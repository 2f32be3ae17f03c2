"""N rollout actors behind one queue: routing, heartbeats, restarts, weight sync. States are drawn in `member`.

Nothing but `sleep` blocks on one actor: whatever ends (groups of answers, started engines, attested loads, heartbeats)
comes out of one inbox, and `poll` looks at deadlines and due restarts beside it, so an actor that restarts never holds
up the others.

| who waits | for what | who ends the wait |
|---|---|---|
| `poll` | anything to happen, at most `timeout_s` | an actor |
| a request that an actor owes | its answer | the actor; or no progress for `stall_timeout_s`, which kills that actor |
| a member STARTING | its engine | the engine; or `startup_timeout_s`, which kills the actor |
| a member STALE | attestation of the published version | its engine; or `sync_timeout_s`, which kills the actor |
| a member DEAD | its back-off | the clock; given up after `max_restarts` failures without an answer in between |
| the run | healthy actors | EngineError when fewer than `min_healthy` are not given up |

Every request is answered exactly once: an outcome counts when it comes from the call that collects for the actor that
owes it; what a dead actor's calls still bring is not looked at, and what it owed goes back to `request_queue`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import ray

from actors.engine import LoadReport
from actors.member import ActorState, Member
from actors.member_calls import MemberCalls
from actors.outcome import Placed, Report
from actors.published import PublishedWeights, check_attested
from actors.ray_calls import ActorLost, Ended
from actors.request_queue import RequestQueue
from actors.status import ActorStatus
from actors.supervision import PoolSettings, judge, plan_restart
from actors.turns import leave
from protocol.contracts import RolloutRequest
from protocol.errors import DeadlineError, EngineError, InfrastructureFailure, SyncError
from protocol.unread import AnyRequest
from protocol.weights import WeightsManifest

WATCH_S = 0.1
"""Between two looks at deadlines, heartbeats and due restarts, all of which are longer."""
BLIND_S = 5.0
"""A longer pause of `poll` (a learner that starts, a last checkpoint) is nobody's silence."""


class RolloutPool:
    """Driver-side owner of the actors. `spawn(name)` creates one Ray actor; `deploy` knows where it may live."""

    def __init__(self, settings: PoolSettings, spawn: Callable[[str], Any], warmup: RolloutRequest | None) -> None:
        self._settings = settings
        self._calls = MemberCalls(settings, spawn, warmup)
        self.queue = RequestQueue(settings.max_in_flight_per_actor, settings.max_retries)
        self._members: list[Member] = []
        self._watched = time.monotonic()
        self._away = False
        """The engines were told to leave their device, and have not been asked for anything since."""
        self._started = self._serves_start = False
        self._ended: EngineError | None = None
        """Why no actor can be had any more."""
        self.published = PublishedWeights()
        self.reports: list[LoadReport] = []
        """Attestations of the version that was published last."""

    def start(self) -> None:
        """Starts all engines at once and waits for them.

        Lost processes and deadlines are retried like later ones. What `start` itself raises (a checkpoint that cannot
        be loaded) would be raised again: it ends the run at once.
        """
        self._members = [Member(f"actor-{i}") for i in range(self._settings.num_actors)]
        for member in self._members:
            self._calls.start(member)
        while any(m.state in (ActorState.STARTING, ActorState.DEAD) and not m.given_up for m in self._members):
            self.poll()
        self._started = True

    def submit(self, requests: Sequence[AnyRequest]) -> None:
        """Queues requests and hands out what fits."""
        if self._away:
            self._away = False
            self._load_fully(member for member in self._members if member.is_idle)
        self.queue.submit(requests)
        self._route()

    @property
    def num_restarts(self) -> int:
        return sum(member.causes.total() for member in self._members)

    def status(self) -> list[ActorStatus]:
        """What each actor does now."""
        return [member.status() for member in self._members]

    def poll(self, timeout_s: float = 1.0) -> list[Placed]:
        """Outcomes that arrived, each with the place of its segment (None without one). Waits for one, or `wake`."""
        outcomes: list[Placed] = []
        self._look(timeout_s, outcomes)
        outcomes += ((outcome, None) for outcome in self.queue.blamed())
        if self._ended is not None and not outcomes:  # first what was answered, and what is to blame
            raise self._ended
        return outcomes

    def wake(self) -> None:
        """Ends the wait of `poll`, from any thread."""
        self._calls.inbox.wake()

    def publish(self, manifest: WeightsManifest, refs: Sequence[Any]) -> None:
        """Sends a version to every live engine; `poll` until `synced`. Others get it in full when they are back."""
        self._away = False
        if manifest.version != self.published.version:
            self.reports = []
        self.published.update(manifest, refs)
        idle = [member for member in self._members if member.is_idle and manifest.reaches(member.process)]
        self._calls.load(idle, manifest, refs)

    def recipients(self, full: bool) -> list[str]:
        """Engine processes for the next broadcast: in part to those that are current, in full to the others."""
        version = self.published.version
        idle = [member for member in self._members if member.is_idle]
        return [member.process for member in idle if version is None or member.serves(version) != full]

    @property
    def awaits_full(self) -> bool:
        """An engine came back after a broadcast, which it cannot read any more."""
        return self.published.was_broadcast and bool(self.recipients(full=True))

    @property
    def synced(self) -> bool:
        """Every live engine attested the published version, and at least one does."""
        live = [member for member in self._members if member.is_live]
        return bool(live) and all(member.serves(self.published.version) for member in live)

    def sleep(self, *, last: bool = False) -> None:
        """Every engine leaves its device (`turns.leave`). None starts or loads before the next publish or request,
        because the learner has the device."""
        self._away = True
        leave(self._members, self._settings.sync_timeout_s, self._fail, last=last)

    def serve_start_checkpoint(self) -> None:
        """Lets the engines answer with the checkpoint they started from: evaluation without a learner."""
        self._serves_start = True
        for member in self._members:
            if member.state is ActorState.STALE:
                member.enter(ActorState.SYNCED)

    def close(self) -> None:
        """Kills every actor; idempotent."""
        for member in self._members:
            if member.handle is not None:
                ray.kill(member.handle)
            member.forget()
        self._members.clear()

    def _look(self, timeout_s: float, outcomes: list[Placed]) -> None:
        for ended in self._calls.inbox.take(timeout_s):
            try:
                self._take(ended, outcomes)
            except (InfrastructureFailure, SyncError) as error:
                self._fail_or_end(ended.owner, error)
        if self._ended is not None:
            return
        if (unseen := time.monotonic() - self._watched) >= WATCH_S:
            self._watched += unseen
            self._watch(self._watched, unseen if unseen > timeout_s + BLIND_S else 0.0)
        self._route()

    def _take(self, ended: Ended[Member], outcomes: list[Placed]) -> None:
        """One call that ended; nothing where it belongs to a process that is gone."""
        member, ref = ended.owner, ended.ref
        if member.collecting is not None and ref == member.collecting.report:
            outcomes += self._on_collected(member, ended.result(f"answers of {member.name}"))
        elif ref == member.heartbeat:
            member.heard(ended.result(f"a heartbeat of {member.name}"))
        elif member.call is not None and ref == member.call.ref:
            call, answer = member.call, ended.result(member.call.what)
            member.call = None
            if call.manifest is None:
                self._on_started(member, answer)
            else:
                self._on_loaded(member, answer, call.manifest)

    def _on_collected(self, member: Member, report: Report) -> Iterator[Placed]:
        for outcome, place in report.placed(member.answered(report.progress)):
            self.queue.answered(member, outcome.key)
            yield outcome, place
        self._calls.collect(member, hold=not self.queue)

    def _on_started(self, member: Member, pid: int) -> None:
        member.pid = pid
        member.moved()
        member.enter(ActorState.STALE)
        if self._serves_start:
            member.enter(ActorState.SYNCED)
        elif not self._away:
            self._load_fully([member])

    def _on_loaded(self, member: Member, report: LoadReport, manifest: WeightsManifest) -> None:
        check_attested(member.name, report, manifest)
        member.moved()
        if manifest.version != self.published.version:  # a newer one was published meanwhile
            self._load_fully([member])
            return
        member.version = manifest.version
        self.reports.append(replace(report, engine=member.name, ended=time.time()))
        member.enter(ActorState.SYNCED)

    def _load_fully(self, members: Iterable[Member]) -> None:
        """Sends the published version, all of it, to those that do not serve it, where it can be sent again."""
        if self.published.can_be_fetched:
            stale = [member for member in members if not member.serves(self.published.version)]
            self._calls.load(stale, *self.published.full())

    def _route(self) -> None:
        for member, batch in self.queue.plan(self._members):
            member.moved()
            self._calls.submit(member, batch, hold=not self.queue)

    def _watch(self, now: float, unseen_s: float) -> None:
        """Deadlines, heartbeats, due restarts. `unseen_s`: for how long nobody asked for heartbeats, or 0."""
        for member in self._members:
            member.progressed_at = min(now, member.progressed_at + unseen_s)
            try:
                judge(member, self._settings.stall_timeout_s, now)
            except DeadlineError as error:
                self._fail_or_end(member, error)
                continue
            if member.is_live:
                self._calls.heartbeat(member, now)
            elif member.is_due(now) and not self._away:
                self._calls.start(member)

    def _fail_or_end(self, member: Member, cause: Exception) -> None:
        """As `_fail`; that too few are left is raised by `poll`, behind what the others have answered by then."""
        try:
            self._fail(member, cause)
        except EngineError as too_few:
            self._ended = self._ended or too_few

    def _fail(self, member: Member, cause: Exception) -> None:
        """Ends a member's process, takes its requests back, and plans its restart or gives it up."""
        cannot_start = member.state is ActorState.STARTING and not isinstance(cause, ActorLost | DeadlineError)
        member.enter(ActorState.DEAD)
        ray.kill(member.handle)
        by_request = member.call is None and not isinstance(cause, SyncError)
        narrows = by_request and member.num_suspects > 1
        self.queue.give_back(member, cause, by_request=by_request)
        member.forget()
        if cannot_start and not self._started:
            raise EngineError(f"{member.name}: its engine cannot start: {cause}") from cause
        plan_restart(member, self._members, self._settings, cause, counts=not narrows)
