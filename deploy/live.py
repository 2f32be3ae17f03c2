"""The run as `/metrics`, `/healthz` and `/readyz` show it at any moment.

The loop's thread tells what happens; the endpoint's thread only reads. Pool and buffer belong to the loop's thread, so
they are looked at from there, at most once a second, while it polls.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import ray

from actors.buffer import SegmentBuffer
from actors.outcome import Outcome
from actors.pool import RolloutPool
from deploy.endpoint import Endpoint, host_port, write_scrape_targets
from deploy.exporter import PHASES, Exporter
from deploy.health import Health
from deploy.phase_clock import PhaseClock
from protocol.config import RunConfig

log = logging.getLogger("rollmatch")

SECONDS_BETWEEN_LOOKS = 1.0
AGES = ("queue/oldest_s", "buffer/oldest_s")
"""Grow while the loop is busy elsewhere, so they are computed when they are scraped."""


class RolloutSide(NamedTuple):
    """The pool and the buffer, as they are looked at."""

    pool: RolloutPool
    buffer: SegmentBuffer

    def numbers(self) -> dict[str, float]:
        """What is told without a label."""
        return {
            "queue/requests": len(self.pool.queue),
            "queue/oldest_s": self.pool.queue.oldest_s,
            "buffer/segments": self.buffer.num_segments,
            "buffer/taken": self.buffer.num_taken,
            "buffer/bytes": self.buffer.num_bytes,
            "buffer/oldest_s": self.buffer.oldest_s,
        }


class Clocks(NamedTuple):
    """Two, because the machine's time may be set while a run lives; seconds both."""

    unix: Callable[[], float] = time.time
    """For timestamps, which Prometheus compares with its own time."""
    steady: Callable[[], float] = time.monotonic
    """For ages."""


class LiveMetrics:
    """Owns exporter, health and endpoint. Call everything from the loop's thread."""

    def __init__(self, config: RunConfig, total_steps: int, phases: PhaseClock, clocks: Clocks | None = None) -> None:
        """Listens at once. ConfigError when the port is taken."""
        self._clocks = clocks or Clocks()
        self._exporter = Exporter(config.run_dir.name, phases.totals)
        self._health = Health(config.metrics.healthy_within_s, self._clocks.steady)
        self._version = 0
        self._phases = set(PHASES)
        self._born: dict[str, float | None] = dict.fromkeys(AGES)
        self._looked = float("-inf")
        for name, value in limits(config).items():
            self._exporter.set(name, value)
        self._exporter.set("run/max_steps", total_steps)
        self._set_ready(False)
        self._exporter.set_function("run/last_progress_timestamp", self._last_progress)
        for name in AGES:
            self._exporter.set_function(name, self._age(name))
        self._side: RolloutSide | None = None
        self._endpoint = Endpoint(config.metrics.host, config.metrics.port, self.render, self._health)
        self._run_dir, self._address = config.run_dir, _reachable(config.metrics.host, self._endpoint.address)
        (self._run_dir / "metrics_address").write_text(self._address + "\n")
        write_scrape_targets(self._run_dir, self._address)
        log.info("metrics on http://%s/metrics, health on /healthz and /readyz", self._address)

    def render(self) -> bytes:
        """The page that is scraped; from any thread."""
        return self._exporter.render()

    def watch(self, side: RolloutSide, nodes: Sequence[Mapping[str, Any]]) -> None:
        """From now on the rollout side can be looked at; Ray's `nodes` are scraped too."""
        self._side = side
        write_scrape_targets(self._run_dir, self._address, nodes)

    def phase(self, name: str, waiting_for: str) -> None:
        if self._health.phase(name, waiting_for):
            self._phases.add(name)
            for phase in self._phases:
                self._exporter.set("run/phase", float(phase == name), phase=phase)
        self._look(at_least_after_s=SECONDS_BETWEEN_LOOKS)

    def outcome(self, outcome: Outcome) -> None:
        self._health.progress()
        self._exporter.outcome(outcome)
        self._look(at_least_after_s=SECONDS_BETWEEN_LOOKS)

    def quarantined(self, outcome: Outcome) -> None:
        self._exporter.quarantined(outcome)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """An optimizer step, an evaluation or a checkpoint, with its metrics."""
        self._health.progress()
        self._exporter.log(metrics)
        self._exporter.set("run/step", step)
        if "time/step_s" in metrics:
            self._exporter.set("run/last_step_timestamp", self._clocks.unix())
        self._look(at_least_after_s=0.0)

    def event(self, kind: str, fields: Mapping[str, Any]) -> None:
        self._health.progress()
        if kind == "publish":
            self._version = int(fields["version"])
            self._set_ready(True)
            self._look(at_least_after_s=0.0)

    def restarted(self) -> None:
        """Engines and learner are closed and start again."""
        self._side = None
        self._set_ready(False)

    def _set_ready(self, is_ready: bool) -> None:
        self._health.ready(is_ready)
        self._exporter.set("run/ready", float(is_ready))

    def close(self) -> None:
        self._endpoint.close()

    def _look(self, at_least_after_s: float) -> None:
        now = self._clocks.steady()
        if now - self._looked < at_least_after_s:
            return
        self._looked = now
        if self._side is None:
            return
        for name, value in self._side.numbers().items():
            if name in AGES:
                self._born[name] = now - value if value > 0 else None
            else:
                self._exporter.set(name, value)
        self._exporter.actors(self._side.pool.status(), self._version, self._clocks.unix())

    def _last_progress(self) -> float:
        return self._clocks.unix() - self._health.since_progress_s

    def _age(self, name: str) -> Callable[[], float]:
        def seconds() -> float:
            born = self._born[name]
            return 0.0 if born is None else self._clocks.steady() - born

        return seconds


def limits(config: RunConfig) -> dict[str, float]:
    """`limit/*`: what the alerts compare with."""
    return {
        "limit/actors": config.rollout.num_actors,
        "limit/staleness": config.rollout.max_staleness,
        "limit/buffer_bytes": config.buffer.max_bytes,
        "limit/buffer_segments": config.buffer.max_segments,
        "limit/quarantined": config.quarantine.max_records,
        "limit/healthy_within_s": config.metrics.healthy_within_s,
    }


def _reachable(host: str, bound: str) -> str:
    """The address for others: this node's own where every interface is listened on."""
    if host not in ("0.0.0.0", "::"):
        return bound
    return host_port(ray.util.get_node_ip_address(), int(bound.rpartition(":")[2]))
