"""Evaluation: rollout → parse → match on the validation records, sums over samples (SPEC 17)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from actors.pool import RolloutPool
from protocol.contracts import Record, RequestKey, RolloutRequest
from protocol.errors import DataFailure
from protocol.metrics import RolloutTotals


def evaluate(
    pool: RolloutPool, records: Sequence[Record], version: int, check_stop: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """`eval_rollout_*` metrics of the current policy. Each record counts once (SPEC A11).

    Raises DataFailure when a validation record cannot be answered: a score over fewer samples would not be comparable.
    """
    started = time.monotonic()
    requests = [
        RolloutRequest(key=RequestKey(record=record.index), record=record, seed=0, min_version=version)
        for record in records
    ]
    pool.submit(requests, evaluate=True)
    totals = RolloutTotals()
    answered = 0
    while answered < len(requests):
        for outcome, _ in pool.poll():
            if outcome.evaluated is None:
                raise DataFailure(f"validation record: {outcome.failure}")
            totals.add(outcome.evaluated)
            answered += 1
        check_stop()
    seconds = time.monotonic() - started
    return totals.evaluation_metrics() | {
        "eval_runtime": seconds,
        "eval_samples_per_second": len(requests) / seconds,
    }
