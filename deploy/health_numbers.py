"""A run's rows and events as the health rules read them: start, end, totals, and since when a bound is passed. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

Rows = Sequence[Mapping[str, float]]

FEWEST = 4
"""Rows that a start or an end is the mean of, where there are twice as many: no single window decides."""

MOST = 50
"""Rows that a start or an end is the mean of at most: however long a run is, what goes wrong is told this soon."""

MOSTLY = 0.7
"""Share of the values behind a step that must be above a bound for it to be passed there."""


_OF_PAIRS = ("desc_exact_acc_on_matched", "desc_sem_acc_on_matched")


class Level(StrEnum):
    """How loud a finding is."""

    BAD = "bad"
    WATCH = "watch"
    GOOD = "good"


LEVEL_WORDS = {Level.BAD: "act", Level.WATCH: "watch", Level.GOOD: "good"}


class HealthFinding(NamedTuple):
    """One sentence about the run, and what to do."""

    level: Level
    title: str
    text: str


class Numbers:
    """The few statistics that rules need. Rows without a metric, and values that are not a number, are left out."""

    def __init__(
        self,
        steps: Rows,
        evaluations: Rows,
        setting: Callable[[str, Any], Any],
        events: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """`setting(path, default)` reads the run's configuration; `events` are the lines of events.jsonl."""
        self.setting = setting
        self._steps, self._evaluations, self._events = steps, evaluations, events

    def series(self, name: str) -> list[tuple[float, float]]:
        """Steps and values."""
        rows = self._evaluations if name.startswith("eval_") else self._steps
        found = ((row["step"], row.get(name, math.nan)) for row in rows)
        return [each for each in found if not math.isnan(each[1])]

    def values(self, name: str) -> list[float]:
        return [value for _, value in self.series(name)]

    def start(self, name: str) -> float | None:
        """Mean of the first fifth, of MOST rows at most."""
        values = self.values(name)
        return _mean(values[: _fifth(values)])

    def end(self, name: str) -> float | None:
        """Mean of the last fifth, of MOST rows at most."""
        values = self.values(name)
        return _mean(values[-_fifth(values) :])

    def best(self, name: str) -> float | None:
        """The largest mean of as many neighbours as an end has: the luckiest of many windows is no score to hold."""
        values = self.values(name)
        width = _fifth(values)
        sums = [0.0, *itertools.accumulate(values)]
        return max(((sums[at] - sums[at - width]) / width for at in range(width, len(sums))), default=None)

    def recent(self, name: str) -> list[tuple[float, float]]:
        """Steps and values of the last MOST rows."""
        return self.series(name)[-MOST:]

    def total(self, name: str) -> float:
        return sum(self.values(name))

    def since(self, name: str, bound: float) -> float | None:
        """The last step before the value went above the bound to stay; None: it was there from the start, or is not."""
        found = self.series(name)
        above = [value > bound for _, value in found]
        rest = list(itertools.accumulate(reversed(above)))[::-1]
        for at in range(len(found)):
            if above[at] and rest[at] >= MOSTLY * (len(found) - at):
                return found[at - 1][0] if at else None
        return None

    def events(self, kind: str) -> list[Mapping[str, Any]]:
        return [event for event in self._events if event["kind"] == kind]


Rule = Callable[[Numbers], Iterator[HealthFinding]]


def without_empty_shares(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics without shares of no pairs: those are 1 by definition (SPEC 16), and would be read as perfect."""
    empty = {
        f"{prefix}{name}"
        for prefix in ("rollout/", "eval_rollout_")
        for name in _OF_PAIRS
        if metrics.get(f"{prefix}desc_pairs_total") == 0
    }
    return {name: value for name, value in metrics.items() if name not in empty}


def percent(share: float) -> str:
    """`0.37` → `37 %`."""
    return f"{100 * share:.0f} %"


def _fifth(values: Sequence[float]) -> int:
    """A fifth of the values, at least FEWEST, at most MOST and half."""
    return max(1, min(max(FEWEST, len(values) // 5), MOST, len(values) // 2))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
