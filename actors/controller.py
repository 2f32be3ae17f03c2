"""The loop.

         ┌────────────────────────── one window ──────────────────────────┐
    admit requests ─► rollouts ─► buffer ─► plan ─► m_steps x train_step ─► publish v+1 ─► evaluate, save when due
         ▲                                                                       │
         └────────────────────── v+1 is attested: slots are free ────────────────┘

| who waits | for what | who ends the wait |
|---|---|---|
| `_first_training` | `effective_batch_size` segments | rollout actors; their deadlines are the pool's |
| `LearnerThread` | the learner's step, merged weights, checkpoint | the learner group, within its `step_timeout_s` |
| `WeightSync.settle` | every actor's attestation | the actors; the pool's deadline; a stop |
| admission | room: by staleness, and in the buffer | a version is attested; a window is released |

The learner trains, merges and saves in a thread of its own, and this thread takes in what the actors answer meanwhile.

With `max_staleness` 0 nothing is in flight at a publish, so every rollout of a window is born on the version that the
window trains: exactly on-policy. With more, requests of later windows are admitted before the window is trained, and
the actors answer them meanwhile, and load a version while the next window is trained (`weight_sync`); the arithmetic is
`protocol.staleness`.

A record that can never work is quarantined and replaced by the next one, so that a window is always exactly
`effective_batch_size` rollouts.

What ends a run though its learner is well (a stop, too many such records, a data file that was changed, too few
engines) leaves a checkpoint of the window that it trains.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence

from actors.buffer import Entry, SegmentBuffer
from actors.evaluator import evaluate
from actors.intake import Intake
from actors.learner_thread import LearnerThread
from actors.loop import Keeper, Learner, LoopSettings, LoopState, Observer, Planner, TrainedWindow
from actors.pool import RolloutPool
from actors.requests import RequestStream
from actors.saver import Saver
from actors.weight_sync import WeightSync
from protocol.errors import DataFailure, EngineError, Interrupted, RecordError, SegmentsLost
from protocol.event_metrics import plan_metrics, window_metrics, without_generation
from protocol.segments import PackPlan
from protocol.unread import RecordLines

log = logging.getLogger("rollmatch.loop")


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
        validation: RecordLines,
        plan: Planner,
        observer: Observer,
        keeper: Keeper,
        state: LoopState | None = None,
    ) -> None:
        self._settings = settings
        self._pool = pool
        self._learner = learner
        self._buffer = buffer
        self._validation = validation
        self._plan = plan
        self._observer = observer
        self._learner_thread = LearnerThread(self._take_in, pool.wake)
        self.state = state or LoopState()
        self._intake = Intake(settings, pool, buffer, requests, observer, self.state)
        self._sync = WeightSync(
            settings, pool, learner, self._intake, observer, self.state, self._learner_thread, lambda: self._is_leaving
        )
        self._saver = Saver(
            settings, self._intake, self._sync, keeper, observer, self.state, self._learner_thread, requests.position
        )
        self.stop = False
        """Set from a signal handler: the loop finishes the window in training, saves and leaves."""

    def run(self) -> LoopState:
        """To `max_steps`; or to a checkpoint, and Interrupted when `stop` was set, the failure of the actors' side."""
        try:
            self._sync.publish(full=True)
            self._begin()
            while self.state.step < self._settings.max_steps:
                self._leave_if_asked()  # where the next window is whole already, nothing below waits, and none looks
                self._train_window()
            self._sync.settle()
            self._learner_thread.check()
        except (Interrupted, DataFailure, RecordError, EngineError) as ending:
            self._learner_thread.failure = ending
            self._saver.save_before(ending, stopped=self.stop)
            raise
        finally:
            self._learner_thread.close()
        return self.state

    def _begin(self) -> None:
        """Evaluates the start, or what the run that is resumed was stopped before; nothing is left to train where that
        was the last."""
        missed = (
            self.state.evaluations
            and self.state.evaluations[-1][0] < self.state.step
            and self.state.evaluation_due(self._settings)
        )
        if missed or not self.state.evaluations:
            self._evaluate()
        if self._is_last and self._settings.save_last:
            self._saver.save()

    def _train_window(self) -> None:
        for metrics in self._window():
            self._observer.step(self.state.step, metrics)
        self._saver.window_ended()
        if self.state.evaluation_due(self._settings):
            self._evaluate()
        self._saver.save_if_due(is_last=self._is_last)

    @property
    def _is_last(self) -> bool:
        return self.state.step >= self._settings.max_steps

    def _window(self) -> Iterator[dict[str, float]]:
        """E-step and M-steps on one window, then the publish; yields each optimizer step's metrics."""
        first_step, version = self.state.step + 1, self.state.version
        entries, plan, metrics = self._first_training()
        for reuse in range(self._settings.m_steps):
            metrics |= self._train(entries, plan) if reuse else {}
            metrics |= window_metrics(self.state.step - reuse, reuse) if self._settings.m_steps > 1 else {}
            self.state.step += 1
            if reuse == self._settings.m_steps - 1 or self._is_last:
                break
            yield metrics
            metrics = without_generation(metrics)
        self._buffer.release(entries)
        self.state.trained += len(entries)
        self.state.carried = len(plan.carried)
        metrics |= self._sync.publish(full=False)
        yield metrics
        trained = tuple(entry.meta for entry in entries)
        self._observer.window(
            TrainedWindow(first_step=first_step, last_step=self.state.step, version=version, segments=trained)
        )

    def _first_training(self) -> tuple[list[Entry], PackPlan, dict[str, float]]:
        """The next window's planned segments, trained once; what is carried is back in the buffer.

        Where objects are lost, their requests are rolled out again first.
        """
        while True:
            entries = self._intake.collect(self._between_polls)
            self._intake.admit()
            planning = time.monotonic()
            plan = self._planned([entry.meta.length for entry in entries])
            planned_s = {"time/post_rollout_pack_s": time.monotonic() - planning} if self._settings.capacity else {}
            planned = [entry for position, entry in enumerate(entries) if position not in plan.carried]
            self._buffer.requeue(entries[position] for position in plan.carried)
            metrics = self._intake.metrics(planned) | planned_s
            try:
                return planned, plan, metrics | self._train(planned, plan)
            except SegmentsLost as error:
                self._observer.event("segments_lost", count=len(error.positions), message=str(error))
                self._intake.roll_out_again(planned, set(error.positions))

    def _planned(self, lengths: Sequence[int]) -> PackPlan:
        """Who trains what of a window; all of its M-steps follow this plan."""
        if not self._settings.packing_carry:
            return self._plan(lengths)
        flush = self._intake.windows_left == 1 and not self._settings.packing_drop_last
        return self._plan(lengths, must_train=self.state.carried, flush=flush)

    def _train(self, entries: Sequence[Entry], plan: PackPlan) -> dict[str, float]:
        self._sync.leave_device()
        started = time.monotonic()
        self._observer.phase("train", "the learner's optimizer step")
        result = self._learner_thread(lambda: self._learner.train_step(plan, [entry.ref for entry in entries]))
        seconds = time.monotonic() - started
        self._observer.event("optimizer_step", seconds=seconds, busy_s=result.busy_s)
        settings, lengths = self._settings, [entry.meta.length for entry in entries]
        packing = plan_metrics(plan, lengths, settings.capacity, settings.min_fill)
        return result.metrics() | packing | {"time/train_step_s": seconds}

    def _evaluate(self) -> None:
        if not self._validation:
            return
        self._sync.settle()
        self._leave_if_asked()
        metrics = evaluate(
            self._pool,
            self._validation,
            self.state.version,
            self._intake.beside_evaluation(),
            self._evaluating,
            self._observer.evaluated,
            self._settings.num_eval_traced,
        )
        self.state.evaluations.append((self.state.step, metrics))
        self._observer.step(self.state.step, metrics)

    def _evaluating(self, answered: int) -> None:
        total = len(self._validation)
        self._observer.phase("evaluate", f"{total - answered} of {total} validation rollouts")
        self._between_polls()

    def _take_in(self, timeout_s: float) -> None:
        self._intake.take_in(timeout_s)
        self._sync.look()

    def _between_polls(self) -> None:
        self._sync.look()
        self._sync.catch_up()
        self._leave_if_asked()

    @property
    def _is_leaving(self) -> bool:
        return self.stop or self._learner_thread.failure is not None

    def _leave_if_asked(self) -> None:
        self._learner_thread.check()
        if self.stop:
            raise Interrupted(f"asked to stop at step {self.state.step}, version {self.state.version}")
