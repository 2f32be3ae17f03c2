"""One metric of the table, and how it is called in Prometheus: `rollmatch_*`, base units as suffix, counters `_total`.

time/step_s               seconds   gauge    rollmatch_time_step_seconds
rollout/segments          1         counter  rollmatch_rollout_segments_total
rollout/gen_tokens_per_s  tokens/s  gauge    rollmatch_rollout_gen_tokens_per_second
eval_rollout_f1           1         gauge    rollmatch_eval_rollout_f1
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

PREFIX = "rollmatch"
RUN_LABEL = "run"
"""On every series: the run's name, so that one Prometheus may scrape several."""
_BASE_UNITS = ("seconds", "bytes", "tokens")

Kind = Literal["counter", "gauge", "histogram"]
Label = Literal["actor", "reason", "phase"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One line of the table."""

    name: str
    unit: str
    """`1` for counts and shares."""
    kind: Kind
    """`counter`: the event's own number, adds up over events; `gauge`: the value of the moment; `histogram`: one
    observation per thing."""
    meaning: str
    alarm: str = ""
    """What to do when it looks bad; empty when nobody needs to be told."""
    labels: tuple[Label, ...] = ()
    """Prometheus labels beside `run`."""
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, ascending."""


def add_rows(
    table: dict[str, Metric],
    kind: Kind,
    unit: str,
    rows: Mapping[str, str | tuple[str, str]],
    *labels: Label,
    buckets: tuple[float, ...] = (),
) -> None:
    """Rows are `name: meaning` or `name: (meaning, alarm)`."""
    for name, text in rows.items():
        meaning, alarm = (text, "") if isinstance(text, str) else text
        assert name not in table, f"{name} is in the table twice"
        table[name] = Metric(
            name=name, unit=unit, kind=kind, meaning=meaning, alarm=alarm, labels=labels, buckets=buckets
        )


def series(metric: Metric) -> str:
    """The name of the metric's series; a histogram's parts add `_bucket`, `_sum` and `_count` to it."""
    name = metric.name.replace("/", "_")
    if metric.unit in ("tokens/s", "1/s"):
        name = name.removesuffix("_per_s").removesuffix("_per_second") + "_per_second"
    elif metric.unit == "seconds":
        name = name.removesuffix("_s")
    if metric.unit in _BASE_UNITS and metric.unit not in name.split("_"):
        name += f"_{metric.unit}"
    name = name.removesuffix("_total")
    if metric.kind == "counter":
        name += "_total"
    elif name.endswith("_count"):  # these two endings mean counters and histograms to Prometheus
        name = name.removesuffix("_count") + "_number"
    assert re.fullmatch(r"[a-z][a-z0-9_]*", name), name
    return f"{PREFIX}_{name}"


def labels(metric: Metric) -> tuple[str, ...]:
    """The labels of the metric's series, `run` first."""
    return (RUN_LABEL, *metric.labels)
