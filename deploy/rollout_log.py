"""What is kept of single rollouts: `rollouts.jsonl`, `evaluations.jsonl`, monitor dumps (SPEC 18). The disk work is a
thread's.

The loop tells each outcome as it arrives, each optimizer step as it ends, and each window when all its steps are done.
What arrived between two steps is written behind the second. A dump is of a window's first step, which trains fresh
rollouts, and is written when the window is told: its samples are the window's own, whatever arrived while it trained.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

from actors.loop import TrainedWindow
from actors.outcome import Outcome
from deploy.background import BackgroundWriter
from deploy.dumps import MonitorDumps
from deploy.recorder import RecordedRollout, RolloutFile, append_evaluated
from protocol.config import RunConfig
from protocol.contracts import RequestKey


class RolloutLog:
    """Used from the loop's thread only."""

    def __init__(self, config: RunConfig) -> None:
        matching = config.matching
        self._monitor, self._training = matching.monitor_dump, config.training
        self._writer = BackgroundWriter()
        self._file = RolloutFile(config.run_dir, config.rollout.record_bytes) if config.rollout.record_bytes else None
        self._dumps = MonitorDumps(config)
        self._failures_per_actor = matching.debug_dump_max if matching.debug_dump_parse_failures else 0
        self._failures: Counter[str] = Counter()
        self._num_dumps = 0
        self._arrived: list[RecordedRollout] = []
        self._evaluated: list[RecordedRollout] = []
        self._untrained: dict[RequestKey, RecordedRollout] = {}
        """Of segments that no window has trained yet, while dumps are still to be written."""
        self._begun: dict[str, float] | None = None
        """Metrics of the step that began the window in training."""
        self._run_dir = config.run_dir
        self._step = 0

    def outcome(self, outcome: Outcome) -> None:
        """A training request was answered."""
        if outcome.trace is None:
            return
        rollout = RecordedRollout.of(outcome, self._step)
        self._arrived.append(rollout)
        if outcome.meta is not None and self._dumps_left:
            self._untrained[outcome.key] = rollout
        stats = outcome.meta.stats if outcome.meta is not None else rollout.trace.stats
        refused = stats.parse_dropped_invalid or stats.parse_truncated
        if refused and self._failures[outcome.actor] < self._failures_per_actor:
            self._failures[outcome.actor] += 1
            self._writer.submit(f"the parse failure of {outcome.key}", partial(self._dumps.log_parse_failure, rollout))

    def evaluated(self, outcome: Outcome) -> None:
        """A validation request was answered."""
        if outcome.trace is not None:
            self._evaluated.append(RecordedRollout.of(outcome, self._step))

    def rewind(self, step: int) -> None:
        """The run goes on behind `step`."""
        self._step = step
        self._untrained, self._begun = {}, None

    def step(self, step: int, metrics: dict[str, float]) -> dict[str, float]:
        """`step` optimizer steps are done, or an evaluation is; returns what the writer dropped and failed at."""
        arrived, self._arrived, self._step = self._arrived, [], step
        if self._begun is None and "rollout/segments" in metrics:
            self._begun = metrics
        self._record(arrived)
        return self._writer.take_counters()

    def window(self, window: TrainedWindow) -> None:
        """A window was trained by the steps that were told last; writes its dump, if one is due."""
        kept = [self._untrained.pop(meta.key, None) for meta in window.segments]
        rollouts = [rollout for rollout in kept if rollout is not None]
        global_step, metrics, self._begun = window.first_step - 1, self._begun, None
        if metrics is None or not rollouts or not self._dump_due(global_step):
            return
        self._num_dumps += 1
        if not self._dumps_left:
            self._untrained = {}
        job = partial(self._dumps.write, global_step, rollouts, metrics)
        self._writer.submit(f"the monitor dump of step {global_step}", job)

    @property
    def _dumps_left(self) -> bool:
        most = self._monitor.max_events
        return self._monitor.enabled and (not most or self._num_dumps < most)

    def _dump_due(self, global_step: int) -> bool:
        steps, first = self._training.logging_steps, self._training.logging_first_step
        return self._monitor.due(global_step, self._num_dumps, logging_steps=steps, logging_first_step=first)

    def _record(self, rollouts: list[RecordedRollout]) -> None:
        if rollouts and self._file is not None:
            self._writer.submit(f"{len(rollouts)} recorded rollouts", partial(self._file.append, rollouts))
        evaluated, self._evaluated = self._evaluated, []
        if evaluated:
            what = f"{len(evaluated)} recorded evaluations"
            self._writer.submit(what, partial(append_evaluated, self._run_dir, evaluated))

    def close(self) -> None:
        """Writes what is left, within the writer's deadline."""
        self._record(self._arrived)
        self._writer.close()
