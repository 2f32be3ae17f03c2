"""Joins the loop's events to where people look: progress line, JSONL, TensorBoard, endpoint, ledger, quarantine."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

from actors.buffer import SegmentBuffer
from actors.loop import TrainedWindow
from actors.outcome import Outcome
from actors.pool import RolloutPool
from deploy.checkpoints import ResumePoint
from deploy.ledger import Ledger
from deploy.live import LiveMetrics, RolloutSide
from deploy.phase_clock import PhaseClock
from deploy.progress import TrainProgress
from deploy.quarantine import Quarantine
from deploy.rollout_log import RolloutLog
from deploy.step_log import StepLog, Write
from deploy.step_metrics import StepMetrics
from deploy.timeline import Timeline
from deploy.tracking import RunTracker
from protocol.config import RunConfig

log = logging.getLogger("rollmatch")


class RunObserver:
    """The loop's `Observer`. One place writes, so files, terminal and endpoint never disagree."""

    def __init__(self, config: RunConfig, total_steps: int) -> None:
        """ConfigError when `metrics.port` is taken, or when a place in `training.report_to` cannot be had."""
        self._quarantine = Quarantine(config)
        self._tracker = RunTracker.of(config)
        self._steps = StepLog(
            self._tracker.log,
            every=config.training.logging_steps,
            first=config.training.logging_first_step,
            last_step=total_steps,
        )
        self._ledger = Ledger(config.run_dir)
        self._timeline = Timeline(self._tracker.event)
        self._rollouts = RolloutLog(config)
        self._progress = TrainProgress(total_steps)
        self._clock = PhaseClock()
        self._metrics = StepMetrics(self._clock)
        self._live = LiveMetrics(config, total_steps, self._clock) if config.metrics.enabled else None
        self._side: RolloutSide | None = None
        self._step = 0
        self._looping = False

    def __enter__(self) -> RunObserver:
        self._progress.__enter__()
        self.phase("start", "Ray")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.ExitStack() as closing:  # from the last: one that fails does not keep the others open
            if self._live is not None:
                closing.callback(self._live.close)
            closing.callback(self._ledger.close)
            closing.callback(self._tracker.close)
            if error is not None:
                closing.callback(self._tracker.event, "end", error=f"{type(error).__name__}: {error}")
            closing.callback(self._steps.flush)
            closing.callback(self._timeline.close)
            closing.callback(self._rollouts.close)
            closing.callback(self._progress.__exit__, kind, error, trace)

    def watch(self, pool: RolloutPool, buffer: SegmentBuffer, nodes: Sequence[Mapping[str, Any]] = ()) -> None:
        """The pool has started: its actors can be looked at from now on, by the loop's thread.

        `nodes`: those of `ray.nodes()` whose metrics belong to the run.
        """
        self._side = RolloutSide(pool, buffer)
        if self._live is not None:
            self._live.watch(self._side, nodes)

    def phase(self, name: str, waiting_for: str) -> None:
        if name == "rollout" and not self._looping:
            self._looping = True
            self._clock.take()  # the start and the first publish belong to no step
        if name == "save":
            self._steps.flush()  # what a checkpoint covers is in the files that it measures
        self._clock.enter(name)
        self._timeline.phase(name, waiting_for)
        self._progress.phase(name, waiting_for)
        if self._live is not None:
            self._live.phase(name, waiting_for)

    def notice(self, text: str) -> None:
        """Shows what a signal asked for; called by its handler."""
        self._progress.notice(text)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        self._step = step
        actors = self._side.pool.status() if self._side is not None else []
        self._timeline.flush()
        tracked = self._tracker.take_counters()
        missed = {name: count + tracked[name] for name, count in self._rollouts.step(step, metrics).items()}
        complete = self._metrics.complete(metrics, actors) | missed
        is_evaluation = "eval_rollout_f1" in metrics
        self._log(complete, self._tracker.log if is_evaluation else self._steps.add)

    def outcome(self, outcome: Outcome) -> None:
        self._metrics.outcome(outcome)
        self._timeline.answered(outcome.actor, outcome.latency_s, outcome.parse_match_s + outcome.encode_s)
        self._rollouts.outcome(outcome)
        if self._live is not None:
            self._live.outcome(outcome)

    def evaluated(self, outcome: Outcome) -> None:
        self._rollouts.evaluated(outcome)

    def event(self, kind: str, **fields: Any) -> None:
        self._tracker.event(kind, **fields)
        if self._live is not None:
            self._live.event(kind, fields)
        if kind == "checkpoint":
            self._log(self._metrics.checkpoint(), self._tracker.log)

    def _log(self, metrics: dict[str, float], write: Write) -> None:
        write(self._step, metrics)
        self._progress.step(metrics | {"step": self._step})
        if self._live is not None:
            self._live.step(self._step, metrics)

    def window(self, window: TrainedWindow) -> None:
        self._ledger.write(window)
        self._rollouts.window(window)

    def resumed(self, point: ResumePoint) -> None:
        """The run continues from a checkpoint, to which the files were cut back before.

        Sets its count of quarantined records to what the file holds: of one that ended the run, only the file knows.
        """
        self._rewind(point)
        self._tracker.event("resume", checkpoint=str(point.path), step=point.state.step)

    def restarted(self, point: ResumePoint | None, cause: Exception) -> None:
        """The learner failed, and the run went back to a checkpoint, or to its start without one; else as `resumed`."""
        step, path = (point.state.step, str(point.path)) if point else (0, None)
        log.warning("the learner failed, the run goes back to step %d (%s): %s", step, path or "its start", cause)
        self._rewind(point)
        self._looping, self._side, self._metrics = False, None, StepMetrics(self._clock)
        if self._live is not None:
            self._live.restarted()
        self._tracker.event("restart", checkpoint=path, step=step, cause=str(cause))
        self._log({"train/restarts": 1.0}, self._tracker.log)

    def _rewind(self, point: ResumePoint | None) -> None:
        self._step = step = point.state.step if point else 0
        self._steps.forget()
        self._progress.rewind(step)
        self._rollouts.rewind(step)
        self._tracker.rewind(step)
        self._quarantine.read()
        if point is not None:
            point.state.quarantined = self._quarantine.num_records

    def quarantine(self, outcome: Outcome) -> bool:
        """Writes the request down, once; whether its record is new. DataFailure where that ends the run."""
        is_new = self._quarantine.add(outcome)
        if is_new and self._live is not None:
            self._live.quarantined(outcome)
        return is_new

    def finish(self, summary: dict[str, Any]) -> None:
        self._tracker.write_summary(summary)
