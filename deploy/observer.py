"""Joins the loop's events to where people look: progress line, JSONL, TensorBoard, ledger, quarantine file."""

from __future__ import annotations

import json
import logging
from types import TracebackType
from typing import Any

from actors.loop import TrainedWindow
from actors.rollout_actor import Outcome
from deploy.ledger import Ledger
from deploy.progress import TrainProgress
from deploy.tracking import RunTracker
from protocol.config import RunConfig
from protocol.errors import DataFailure

log = logging.getLogger("rollmatch")


class RunObserver:
    """The loop's `Observer`. One place writes, so files and terminal never disagree."""

    def __init__(self, config: RunConfig, total_steps: int) -> None:
        self._limit = config.quarantine.max_records
        self._quarantined = 0
        self._quarantine_path = config.run_dir / "quarantine.jsonl"
        self._tracker = RunTracker(config.run_dir, report_to=config.training.report_to)
        self._ledger = Ledger(config.run_dir)
        self._progress = TrainProgress(total_steps)

    def __enter__(self) -> RunObserver:
        self._progress.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        if error is not None:
            self._tracker.event("end", error=f"{type(error).__name__}: {error}")
        self._tracker.close()
        self._ledger.close()

    def phase(self, name: str, waiting_for: str) -> None:
        self._progress.phase(name, waiting_for)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        self._tracker.log(step, metrics)
        self._progress.step(metrics | {"step": step})

    def outcome(self, outcome: Outcome) -> None:
        """Nothing is written for a single rollout yet."""

    def event(self, kind: str, **fields: Any) -> None:
        self._tracker.event(kind, **fields)

    def window(self, window: TrainedWindow) -> None:
        self._ledger.write(window)

    def quarantine(self, outcome: Outcome) -> None:
        """Writes the record down; DataFailure when there are more than `quarantine.max_records`."""
        self._quarantined += 1
        with self._quarantine_path.open("a") as lines:
            lines.write(json.dumps({"key": str(outcome.key), "reason": outcome.failure}) + "\n")
        log.warning("quarantined %s: %s", outcome.key, outcome.failure)
        if self._quarantined > self._limit:
            raise DataFailure(
                f"{self._quarantined} records are quarantined, quarantine.max_records is {self._limit}; "
                f"look at {self._quarantine_path} and mend the data, or raise the limit"
            )

    def finish(self, summary: dict[str, Any]) -> None:
        self._tracker.write_summary(summary)
