"""Evaluation: rollout → parse → match on the validation records, sums over samples (SPEC 17)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from actors.outcome import Outcome
from actors.pool import RolloutPool
from protocol.contracts import EVALUATION_EPOCH, Record, RequestKey, RolloutRequest
from protocol.errors import DataFailure
from protocol.event_metrics import evaluation_timing
from protocol.metrics import RolloutTotals
from protocol.segments import SegmentStats


def evaluate(
    pool: RolloutPool,
    records: Sequence[Record],
    version: int,
    others: Callable[[Outcome, Any], None],
    progress: Callable[[int], None] = lambda answered: None,
    keep: Callable[[Outcome], None] = lambda outcome: None,
    num_traced: int = 0,
) -> dict[str, float]:
    """`eval_rollout_*` metrics of the current policy. Each record counts as often as it is listed (SPEC A11).

    `others` takes the outcomes of training requests that arrive meanwhile; `progress` is told how many records were
    answered, before each wait, and may raise to end the evaluation. `keep` takes each outcome; those of the first
    `num_traced` records carry a trace, where the actors make any.

    Raises DataFailure when a validation record cannot be answered: a score over fewer samples would not be comparable.
    """
    started = time.monotonic()
    requests = _requests(records, version, num_traced)
    pool.submit(requests)
    evaluated: list[SegmentStats] = []
    while len(evaluated) < len(requests):
        progress(len(evaluated))
        for outcome, segment in pool.poll():
            if outcome.key.epoch != EVALUATION_EPOCH:
                others(outcome, segment)
                continue
            if outcome.evaluated is None:
                raise DataFailure(f"validation record: {outcome.failure}")
            keep(outcome)
            evaluated.append(outcome.evaluated)
    timing = evaluation_timing(len(requests), 1, time.monotonic() - started)
    return RolloutTotals.of(evaluated).evaluation_metrics(desc_enabled=True) | timing


def _requests(records: Sequence[Record], version: int, num_traced: int) -> list[RolloutRequest]:
    """A record that was drawn more than once is asked for as often, under a key of its own."""
    drawn: Counter[int] = Counter()
    requests = []
    for position, record in enumerate(records):
        key = RequestKey(record=record.index, epoch=EVALUATION_EPOCH, rollout=drawn[record.index])
        drawn[record.index] += 1
        requests.append(
            RolloutRequest(key=key, record=record, seed=0, min_version=version, traced=position < num_traced)
        )
    return requests
