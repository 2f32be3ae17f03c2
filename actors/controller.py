"""The loop.

         ┌────────────────────────── one window ──────────────────────────┐
    admit requests ─► rollouts ─► buffer ─► plan ─► m_steps x train_step ─► publish v+1 ─► evaluate, save when due
         ▲                                                                       │
         └───────────────────────── version rises: slots are free ───────────────┘

| who waits | for what | who ends the wait |
|---|---|---|
| `_collect` | `effective_batch_size` segments | rollout actors; their deadlines are the pool's |
| `_meanwhile` | the learner's step, or its merged weights | the learner group, within its `step_timeout_s` |
| `_publish` | every actor's attestation | the actors; the pool's deadline |
| admission | room: by staleness, and in the buffer | the version rises; a window is released |

The learner works in a thread of its own, and this thread takes in what the actors answer meanwhile: no wait is blind.

With `max_staleness` 0 nothing is in flight at a publish, so every rollout of a window is born on the version that the
window trains: exactly on-policy. With more, requests of later windows are admitted before the window is trained, and
the actors answer them meanwhile; the arithmetic is `protocol.staleness`.

A record that can never work is quarantined and replaced by the next one, so that a window is always exactly
`effective_batch_size` rollouts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

from actors.buffer import Entry, SegmentBuffer
from actors.engine import LoadReport
from actors.evaluator import evaluate
from actors.loop import Keeper, Learner, LoopSettings, LoopState, Observer, Planner, TrainedWindow
from actors.pool import RolloutPool
from actors.published import sync_metrics
from actors.requests import RequestStream
from actors.rollout_actor import Outcome
from protocol.contracts import Record, SegmentMeta
from protocol.errors import Interrupted, NothingChangedError, SegmentsLost
from protocol.metrics import (
    RolloutTotals,
    generation_metrics,
    packing_metrics,
    policy_metrics,
    window_metrics,
    without_generation,
)
from protocol.staleness import admissible, check_fresh

T = TypeVar("T")


class Controller:
    """Owns the order of events, and nothing else: no tensors, no files."""

    def __init__(
        self,
        settings: LoopSettings,
        *,
        pool: RolloutPool,
        learner: Learner,
        buffer: SegmentBuffer,
        requests: RequestStream,
        validation: Sequence[Record],
        plan: Planner,
        observer: Observer,
        keeper: Keeper,
        state: LoopState | None = None,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._learner = learner
        self._buffer = buffer
        self._requests = requests
        self._validation = validation
        self._plan = plan
        self._observer = observer
        self._keeper = keeper
        self._learner_thread = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self._orders: dict[Any, int] = {}
        """Requests without an answer, by key: their positions in the run."""
        self._arrived: list[Outcome] = []
        """Outcomes since the last window was complete."""
        self._generated_s = 0.0
        """Seconds with requests under way since then."""
        self.state = state or LoopState()
        self._boundary = requests.position
        """Where a resume starts: every request before it was trained or quarantined."""
        self.stop = False
        """Set from a signal handler: the loop finishes the window in training, saves and leaves."""

    def run(self) -> LoopState:
        """Runs to `max_steps`. Interrupted, after a checkpoint, when `stop` was set."""
        try:
            self._publish(full=True)
            if not self.state.evaluations:
                self._evaluate()
            while self.state.step < self._settings.max_steps:
                self._train_window()
        except Interrupted:
            self._save()
            raise
        finally:
            self._learner_thread.shutdown(wait=False, cancel_futures=True)
        return self.state

    def _train_window(self) -> None:
        for metrics in self._window():
            self._observer.step(self.state.step, metrics)
        waiting = [*self._orders.values(), *(entry.order for entry in self._buffer.ready())]
        self._boundary = min(waiting, default=self._requests.position)
        if self._evaluation_due():
            self._evaluate()
        if self._keeper.due(self.state.step) or (self._settings.save_last and self._is_last):
            self._save()

    @property
    def _is_last(self) -> bool:
        return self.state.step >= self._settings.max_steps

    def _leave_device(self) -> None:
        if self._settings.takes_turns:
            self._pool.sleep()

    def _save(self) -> None:
        self._leave_device()
        self._observer.phase("save", f"the checkpoint of step {self.state.step}")
        path = self._keeper.save(self.state, self._boundary)
        self._observer.event("checkpoint", path=str(path), position=self._boundary)

    def _window(self) -> Iterator[dict[str, float]]:
        """E-step and M-steps on one window, then the publish; yields each optimizer step's metrics."""
        first_step, version = self.state.step + 1, self.state.version
        entries, metrics = self._first_training()
        for reuse in range(self._settings.m_steps):
            metrics |= (self._train(entries) if reuse else {}) | window_metrics(self.state.step - reuse, reuse)
            self.state.step += 1
            if reuse == self._settings.m_steps - 1 or self._is_last:
                break
            yield metrics
            metrics = without_generation(metrics)
        self._buffer.release(entries)
        self.state.trained += len(entries)
        metrics |= self._publish(full=False)
        if self._settings.max_staleness:
            self._admit()  # while this step is saved and evaluated, the actors work
        yield metrics
        trained = tuple(entry.meta for entry in entries)
        self._observer.window(
            TrainedWindow(first_step=first_step, last_step=self.state.step, version=version, segments=trained)
        )

    def _first_training(self) -> tuple[list[Entry], dict[str, float]]:
        """The next window, trained once. Where objects of it are lost, their requests are rolled out again first."""
        while True:
            entries, metrics = self._collect()
            self._admit()
            try:
                return entries, metrics | self._train(entries)
            except SegmentsLost as error:
                self._observer.event("segments_lost", count=len(error.positions), message=str(error))
                self._roll_out_again(entries, set(error.positions))

    def _roll_out_again(self, entries: Sequence[Entry], lost: set[int]) -> None:
        """Gives a window back: what is left of it is ready again, what is lost keeps its place in the order."""
        self._buffer.requeue(entry for position, entry in enumerate(entries) if position not in lost)
        gone = [entries[position] for position in sorted(lost)]
        self._buffer.release(gone)
        self.state.accepted -= len(gone)
        requests = [self._requests.again(entry.order, min_version=self.state.version) for entry in gone]
        self._orders.update({request.key: entry.order for request, entry in zip(requests, gone, strict=True)})
        self._pool.submit(requests)

    def _admit(self) -> None:
        """Sends as many requests as staleness allows (protocol.staleness has the proof), the buffer can hold, and the
        steps that are left can train."""
        settings, running = self._settings, len(self._orders)
        fresh = admissible(
            version=self.state.version,
            max_staleness=settings.max_staleness,
            batch_size=settings.batch_size,
            accepted=self.state.accepted,
            running=running,
        )
        windows_left = -(-(settings.max_steps - self.state.step) // settings.m_steps)
        untrained = self.state.accepted - self.state.trained + running
        wanted = windows_left * settings.batch_size - untrained
        if (room := min(fresh, self._buffer.room(num_running=running), wanted)) > 0:
            batch = self._requests.take(room, min_version=self.state.version)
            self._orders.update({request.key: order for order, request in batch})
            self._pool.submit([request for _, request in batch])

    def _take_in(self, timeout_s: float = 1.0) -> None:
        """What the actors have answered; waits for the first."""
        started, busy = time.monotonic(), bool(self._orders)
        for outcome, segment in self._pool.poll(timeout_s):
            self._arrived.append(outcome)
            self._accept(outcome, segment)
        if busy:
            self._generated_s += time.monotonic() - started

    def _meanwhile(self, work: Callable[[], T]) -> T:
        """The learner's `work`, while what the actors answer is taken in."""
        future = self._learner_thread.submit(work)
        while not wait([future], timeout=0.0 if self._orders else 1.0).done:
            self._take_in(timeout_s=0.05 if self._orders else 0.0)
        return future.result()

    def _collect(self) -> tuple[list[Entry], dict[str, float]]:
        """Waits for one window's segments; oldest requests first, whatever the order of arrival."""
        started = time.monotonic()
        wanted = self._settings.batch_size
        while (takable := self._buffer.num_takable(self._oldest_running)) < wanted:
            self._admit()
            self._observer.phase("rollout", f"{wanted - takable} of {wanted} segments")
            self._take_in()
            self._leave_if_asked()
        entries = self._buffer.take(wanted, oldest_running=self._oldest_running)
        waited = time.monotonic() - started
        metrics = self._rollout_metrics([entry.meta for entry in entries], self._arrived, self._generated_s)
        self._arrived, self._generated_s = [], 0.0
        return entries, metrics | {"time/wait_rollouts_s": waited}

    @property
    def _oldest_running(self) -> int | None:
        return min(self._orders.values(), default=None)

    def _accept(self, outcome: Outcome, segment: Any) -> None:
        order = self._orders.pop(outcome.key)
        self._observer.outcome(outcome)
        if outcome.meta is None:
            self.state.quarantined += 1
            self._observer.quarantine(outcome)
            return
        self._buffer.put(outcome.meta, segment, order=order)
        self.state.accepted += 1

    def _rollout_metrics(self, metas: list[SegmentMeta], arrived: list[Outcome], seconds: float) -> dict[str, float]:
        for meta in metas:
            check_fresh(meta, self.state.version, self._settings.max_staleness)
        totals = RolloutTotals.of(meta.stats for meta in metas)
        self.state.versions_used |= {version for meta in metas for version in (meta.first_version, meta.last_version)}
        descs = self._settings.desc_enabled and self.state.step % self._settings.desc_every == 0
        return (
            totals.rollout_metrics(self._settings.top_k, desc_enabled=descs)
            | generation_metrics([outcome.new_tokens for outcome in arrived], seconds)
            | policy_metrics(metas, self.state.version)
            | {
                "time/rollout_parse_match_s": sum(outcome.parse_match_s for outcome in arrived),
                "time/rollout_teacher_encode_s": sum(outcome.encode_s for outcome in arrived),
                "rollout/quarantined": float(self.state.quarantined),
                "buffer/bytes": float(self._buffer.num_bytes),
                "buffer/segments": float(self._buffer.num_segments),
                "buffer/taken": float(self._buffer.num_taken),
                "train/epoch": self._requests.epochs(self.state.trained),
            }
        )

    def _train(self, entries: Sequence[Entry]) -> dict[str, float]:
        lengths = [entry.meta.length for entry in entries]
        planning = time.monotonic()
        plan = self._plan(lengths)
        self._leave_device()
        started = time.monotonic()
        self._observer.phase("train", "the learner's optimizer step")
        result = self._meanwhile(lambda: self._learner.train_step(plan, [entry.ref for entry in entries]))
        seconds = time.monotonic() - started
        self._observer.event("optimizer_step", seconds=seconds, busy_s=result.busy_s)
        return (
            result.metrics()
            | packing_metrics(plan, lengths, self._settings.capacity)
            | {"time/train_step_s": seconds, "time/post_rollout_pack_s": started - planning}
        )

    def _publish(self, full: bool) -> dict[str, float]:
        """Version v+1 (or v, in full, at the start) on every engine, attested."""
        if self._settings.skip_publish and not full:
            raise NothingChangedError(
                f"step {self.state.step}: an optimizer step ran and nothing was published "
                "(sync.debug_skip_publish is true); switch it off: the engines still serve the version before"
            )
        version = self.state.version if full else self.state.version + 1
        self._observer.phase("sync", f"version {version} on every engine")
        started = time.monotonic()
        manifest, refs = self._meanwhile(lambda: self._learner.publish(version, full))
        if not full and self._settings.learning and manifest.changed_tensors == 0:
            raise NothingChangedError(
                f"version {version}: an optimizer step ran and 0 of {len(manifest.tensors)} published tensors changed; "
                "check training.learning_rate, tuner.* (is everything frozen?) and model.torch_dtype (rounding)"
            )
        self._pool.publish(manifest, refs)
        while not self._pool.synced:
            self._take_in()
        self.state.version = version
        reports = self._pool.reports
        self._observer.event(
            "publish", version=version, checksums=manifest.bucket_checksums, engines=_attested(reports)
        )
        return {"policy/version": float(version)} | sync_metrics(manifest, reports, time.monotonic() - started)

    def _evaluation_due(self) -> bool:
        every = self._settings.eval_steps
        last = self.state.evaluations[-1][0] if self.state.evaluations else 0
        crossed = every > 0 and self.state.step // every > last // every
        return crossed or self._is_last

    def _evaluate(self) -> None:
        if not self._validation:
            return
        metrics = evaluate(self._pool, self._validation, self.state.version, self._accept, self._evaluating)
        self.state.evaluations.append((self.state.step, metrics))
        self._observer.step(self.state.step, metrics)

    def _evaluating(self, answered: int) -> None:
        total = len(self._validation)
        self._observer.phase("evaluate", f"{total - answered} of {total} validation rollouts")
        self._leave_if_asked()

    def _leave_if_asked(self) -> None:
        if self.stop:
            raise Interrupted(f"asked to stop at step {self.state.step}, version {self.state.version}")


def _attested(reports: Sequence[LoadReport]) -> list[dict[str, Any]]:
    return [{"version": report.version, "checksums": report.bucket_checksums} for report in reports]
