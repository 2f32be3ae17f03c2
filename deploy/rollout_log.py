"""What is kept of single rollouts: `rollouts.jsonl`. The disk work is a thread's.

The loop tells each outcome as it arrives and each optimizer step as it ends; what arrived between two steps is written
behind the second.
"""

from __future__ import annotations

from functools import partial

from actors.rollout_actor import Outcome
from deploy.background import BackgroundWriter
from deploy.recorder import RecordedRollout, RolloutFile
from protocol.config import RunConfig


class RolloutLog:
    """Used from the loop's thread only."""

    def __init__(self, config: RunConfig) -> None:
        self._writer = BackgroundWriter()
        self._file = RolloutFile(config.run_dir, config.rollout.record_bytes) if config.rollout.record_bytes else None
        self._arrived: list[RecordedRollout] = []
        self._step = 0

    def outcome(self, outcome: Outcome) -> None:
        """A training request was answered."""
        if outcome.trace is not None:
            self._arrived.append(RecordedRollout.of(outcome, self._step))

    def step(self, step: int) -> dict[str, float]:
        """`step` optimizer steps are done, or an evaluation is; returns what the writer dropped and failed at."""
        arrived, self._arrived, self._step = self._arrived, [], step
        self._record(arrived)
        return self._writer.take_counters()

    def _record(self, rollouts: list[RecordedRollout]) -> None:
        if rollouts and self._file is not None:
            self._writer.submit(f"{len(rollouts)} recorded rollouts", partial(self._file.append, rollouts))

    def close(self) -> None:
        """Writes what is left, within the writer's deadline."""
        self._record(self._arrived)
        self._arrived = []
        self._writer.close()
