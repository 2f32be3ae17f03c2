"""The metric table as Prometheus series, in a registry of its own. No network here; `deploy.endpoint` serves it.

Every value of every label is known beforehand, so the number of series does not grow with the run: a reason that is
not listed here counts as `other`. Series with known labels start at 0, because Prometheus cannot see a counter rise
that was not there before.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from actors.member import ActorState
from actors.outcome import Outcome
from actors.status import ActorStatus
from deploy.quarantine import ADVICE, kind_of
from protocol.event_metrics import repeats
from protocol.metric_series import RUN_LABEL, Metric, labels, series
from protocol.metric_table import METRICS, metric

PHASES = ("start", "rollout", "train", "sync", "evaluate", "save")
SYNC_PHASES = tuple(
    entry.name.removeprefix("sync/").removesuffix("_s")
    for entry in METRICS
    if entry.name.startswith("sync/") and entry.unit == "seconds" and entry.kind == "gauge"
)
OTHER = "other"
PHASE_SECONDS = "run/phase_s"

QUARANTINE_REASONS = (*ADVICE, OTHER)
RESTART_REASONS = ("ActorLost", "DeadlineError", "EngineError", "SyncError", OTHER)
"""Classes of what `RolloutPool` restarts an actor for."""
OUTCOME_REASONS = ("stop", "length", "failed")

_FIXED: dict[str, list[dict[str, str]]] = {
    "run/phase": [{"phase": phase} for phase in PHASES],
    "sync/latency_s": [{"phase": phase} for phase in SYNC_PHASES],
    "rollout/outcomes": [{"reason": reason} for reason in OUTCOME_REASONS],
    "quarantine/records": [{"reason": reason} for reason in QUARANTINE_REASONS],
}
"""Metric → its label values, where they do not depend on the pool."""


class Exporter:
    """Every metric of the table as a series. Values are set by the driver's thread; any thread may render."""

    def __init__(self, run: str, phase_seconds: Callable[[], Mapping[str, float]]) -> None:
        """`phase_seconds` gives `run/phase_s` when it is scraped: a step of ten minutes is seen while it lasts."""
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._run = run
        self._registry = CollectorRegistry()
        self._series = {entry.name: _family(entry, self._registry) for entry in METRICS if entry.name != PHASE_SECONDS}
        self._children: dict[tuple[object, ...], Any] = {}
        self._registry.register(_PhaseSeconds(run, phase_seconds))
        self._actors: dict[str, dict[str, int]] = {}
        self._begin()

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)

    def set(self, name: str, value: float, **where: str) -> None:
        self._child(name, where).set(value)

    def set_function(self, name: str, value: Callable[[], float], **where: str) -> None:
        """A gauge that is computed when it is scraped, in the scraping thread."""
        self._child(name, where).set_function(value)

    def add(self, name: str, amount: float, **where: str) -> None:
        self._child(name, where).inc(amount)

    def observe(self, name: str, value: float, **where: str) -> None:
        self._child(name, where).observe(value)

    def log(self, metrics: Mapping[str, float]) -> None:
        """One event: gauges are set, counters add up. What a window's rollouts counted is added once per window."""
        for name, value in metrics.items():
            if metric(name).kind == "gauge":
                self.set(name, value)
            elif math.isfinite(value) and not repeats(name, metrics):
                self.add(name, value)
            phase = name.removeprefix("sync/").removesuffix("_s")
            if name == f"sync/{phase}_s":
                self.observe("sync/latency_s", value, phase=phase)
        if "time/train_step_s" in metrics:
            self.observe("train/step_latency_s", metrics["time/train_step_s"])

    def outcome(self, outcome: Outcome) -> None:
        """One training request was answered."""
        reason = "failed" if outcome.failure is not None else outcome.finish_reason
        self.add("rollout/outcomes", 1, reason=reason if reason in OUTCOME_REASONS else "failed")
        if outcome.meta is not None:
            self.observe("rollout/latency_s", outcome.latency_s)
            self.observe("rollout/new_tokens", outcome.new_tokens)
            self.observe("rollout/segment_tokens", outcome.meta.length)

    def quarantined(self, outcome: Outcome) -> None:
        """A record was set aside that was not before."""
        kind = kind_of(outcome.failure or "")
        self.add("quarantine/records", 1, reason=kind if kind in QUARANTINE_REASONS else OTHER)

    def actors(self, actors: Sequence[ActorStatus], version: int, now: float) -> None:
        """The pool as it is; `version` is the newest published one, `now` the Unix time."""
        for actor in actors:
            name = actor.name
            self.set("actor/version", actor.version, actor=name)
            self.set("actor/staleness", version - actor.version, actor=name)
            self.set("actor/owed", actor.num_owed, actor=name)
            self.set("actor/running", actor.num_running, actor=name)
            self.set("actor/given_up", float(actor.given_up), actor=name)
            self.set("actor/last_progress_timestamp", now - actor.idle_s, actor=name)
            for state in ActorState:
                self.set("actor/state", float(actor.state == state), actor=name, phase=state)
            self._restarts(actor)

    def _restarts(self, actor: ActorStatus) -> None:
        counted = self._actors.setdefault(actor.name, dict.fromkeys(RESTART_REASONS, 0))
        causes = dict.fromkeys(RESTART_REASONS, 0)
        for cause, count in actor.restarts.items():
            causes[cause if cause in causes else OTHER] += count
        for reason, count in causes.items():
            fresh = count - counted[reason] if count >= counted[reason] else count  # a new pool counts from 0
            self.add("actor/restarts", fresh, actor=actor.name, reason=reason)
        self._actors[actor.name] = causes

    def _child(self, name: str, where: Mapping[str, str]) -> Any:
        key = (name, *where.items())
        if key not in self._children:
            self._children[key] = self._series[name].labels(**{RUN_LABEL: self._run}, **where)
        return self._children[key]

    def _begin(self) -> None:
        for entry in METRICS:
            if entry.kind != "gauge" and not entry.labels:  # a gauge is absent until it has a value
                self._child(entry.name, {})
        for name, combinations in _FIXED.items():
            for combination in combinations:
                self._child(name, combination)


def _family(entry: Metric, registry: CollectorRegistry) -> Any:
    names = labels(entry)
    if entry.kind == "histogram":
        return Histogram(series(entry), entry.meaning, names, registry=registry, buckets=entry.buckets)
    kind = Counter if entry.kind == "counter" else Gauge
    return kind(series(entry), entry.meaning, names, registry=registry)


class _PhaseSeconds(Collector):
    def __init__(self, run: str, seconds: Callable[[], Mapping[str, float]]) -> None:
        self._run = run
        self._seconds = seconds

    def collect(self) -> Iterator[CounterMetricFamily]:
        entry = metric(PHASE_SECONDS)
        family = CounterMetricFamily(series(entry), entry.meaning, labels=labels(entry))
        for phase, seconds in (dict.fromkeys(PHASES, 0.0) | dict(self._seconds())).items():
            family.add_metric([self._run, phase], seconds)
        yield family
