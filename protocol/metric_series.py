"""How a metric of the table is called in Prometheus: `rollmatch_*`, base units as suffix, counters `_total`.

time/step_s               seconds   gauge    rollmatch_time_step_seconds
rollout/segments          1         counter  rollmatch_rollout_segments_total
rollout/gen_tokens_per_s  tokens/s  gauge    rollmatch_rollout_gen_tokens_per_second
eval_rollout_f1           1         gauge    rollmatch_eval_rollout_f1
"""

from __future__ import annotations

import re

from .metric_names import Metric

PREFIX = "rollmatch"
RUN_LABEL = "run"
"""On every series: the run's name, so that one Prometheus may scrape several."""
_BASE_UNITS = ("seconds", "bytes", "tokens")


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
