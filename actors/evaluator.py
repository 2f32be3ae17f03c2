"""Evaluation: rollout → parse → match on the validation records, sums over samples (SPEC 17)."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from actors.outcome import Outcome
from actors.pool import RolloutPool
from protocol.contracts import EVALUATION_EPOCH, RequestKey
from protocol.errors import DataFailure
from protocol.event_metrics import evaluation_timing
from protocol.metrics import RolloutTotals
from protocol.segments import SegmentStats
from protocol.unread import RecordLines, UnreadRequest

ENOUGH = 100
"""Failures with which an evaluation ends early: a mount is gone, and each image would wait for it."""
SHOWN = 3
"""Failures that the error names."""

log = logging.getLogger("rollmatch.loop")


def evaluate(
    pool: RolloutPool,
    records: RecordLines,
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

    Raises DataFailure when validation records cannot be answered: a score over fewer samples would not be comparable.
    It comes at the end, or after ENOUGH, and the log has all of them, so that they are mended at once.
    """
    started = time.monotonic()
    requests = _requests(records, version, num_traced)
    pool.submit(requests)
    evaluated: list[SegmentStats] = []
    failures: list[str] = []
    while (answered := len(evaluated) + len(failures)) < len(requests) and len(failures) < ENOUGH:
        progress(answered)
        for outcome, segment in pool.poll():
            if outcome.key.epoch != EVALUATION_EPOCH:
                others(outcome, segment)
                continue
            if outcome.evaluated is None:
                failures.append(outcome.failure or "")
                log.warning("validation record %s: %s", outcome.key.record, outcome.failure)
                continue
            keep(outcome)
            evaluated.append(outcome.evaluated)
    if failures:
        raise DataFailure(_failed(failures, answered=len(evaluated) + len(failures), asked=len(requests)))
    timing = evaluation_timing(len(requests), 1, time.monotonic() - started)
    return RolloutTotals.of(evaluated).evaluation_metrics(desc_enabled=True) | timing


def _failed(failures: Sequence[str], *, answered: int, asked: int) -> str:
    early = f" ({asked - answered} more were not waited for)" if answered < asked else ""
    more = "; ... (the log names them all)" if len(failures) > SHOWN else ""
    return (
        f"{len(failures)} of {answered} validation records failed{early}, and a score over fewer would not compare; "
        f"mend them, or take them out of custom.val_jsonl: {'; '.join(failures[:SHOWN])}{more}"
    )


def _requests(records: RecordLines, version: int, num_traced: int) -> list[UnreadRequest]:
    """A record that was drawn more than once is asked for as often, under a key of its own."""
    drawn: Counter[int] = Counter()
    requests = []
    for position, line in enumerate(records):
        key = RequestKey(record=line.index, epoch=EVALUATION_EPOCH, rollout=drawn[line.index])
        drawn[line.index] += 1
        requests.append(UnreadRequest(key=key, line=line, seed=0, min_version=version, traced=position < num_traced))
    return requests
