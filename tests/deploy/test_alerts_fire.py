"""Each alert is fired by its condition, and by nothing else, from what the loop says to the rule's own evaluation.

A run of simulated time tells `LiveMetrics` what the loop would; after 39 healthy minutes one thing goes wrong. The page
is read with every window, and promtool evaluates the project's rules on those very series. What the rules do at their
edges is in `prometheus/alerts.yaml`.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.request_queue import RequestQueue
from actors.rollout_actor import Outcome
from actors.status import ActorStatus
from deploy.live import Clocks, LiveMetrics, RolloutSide
from deploy.phase_clock import PhaseClock
from protocol.config import load_config
from protocol.contracts import RequestKey
from protocol.metrics import RolloutTotals
from protocol.segments import SegmentStats
from tests.deploy.test_dashboards import ROOT, RULES, alerts

WINDOW_M = 3
"""Minutes of a window, which is a scrape interval too: Prometheus forgets a value after five."""
HEALTHY_WINDOWS, WINDOWS = 14, 37
ROLLOUTS = 32
HEALTHY = SegmentStats(gt_objects=8, valid_predictions=8, matched_pairs=6, matched_for_supervision=6)
ASKED_FOR = set(re.findall(r"\brollmatch_\w+", RULES.read_text()))


@dataclass(frozen=True, kw_only=True)
class Window:
    """What is said of one window, which is rolled out, trained and published."""

    stats: SegmentStats = HEALTHY
    failures: int = 0
    waits: float = 0.1
    """Share of the time that the learner waits for rollouts."""
    staleness: int = 1
    owed: int = 16
    buffered: int = 96
    restarts: Mapping[str, int] = field(default_factory=dict)
    """Of actor-0, since the start."""
    silent: bool = False


FAULTS = {
    "RollmatchParseTruncated": Window(stats=replace(HEALTHY, parse_truncated=1)),
    "RollmatchInvalidObjects": Window(stats=replace(HEALTHY, parse_dropped_invalid=2)),
    "RollmatchDuplicates": Window(stats=replace(HEALTHY, duplicates=2)),
    "RollmatchF1Collapse": Window(stats=replace(HEALTHY, matched_pairs=2, matched_for_supervision=2)),
    "RollmatchRecallWithoutPrecision": Window(stats=replace(HEALTHY, valid_predictions=16)),
    "RollmatchQuarantineGrowth": Window(failures=1),
    "RollmatchStalenessAtBound": Window(staleness=3),
    "RollmatchLearnerStarving": Window(waits=0.75),
    "RollmatchActorsStarving": Window(owed=0),
    "RollmatchBufferAtBound": Window(buffered=4096),
    "RollmatchNoProgress": Window(silent=True),
    "RollmatchSyncFailing": Window(restarts={"SyncError": 1}),
    "RollmatchRestarts": Window(restarts={"ActorLost": 3}),
}


class Run:
    """A run whose time is told."""

    def __init__(self, folder: Path) -> None:
        """Its folder's name is the run's."""
        overrides = [f"training.output_dir={folder.parent}", f"training.run_name={folder.name}"]
        overrides += ["rollout.max_staleness=3", "buffer.max_segments=4096", "metrics.port=0"]
        config = load_config(ROOT / "configs" / "demo.yaml", overrides=overrides)
        folder.mkdir()
        self.now = 0.0
        self._phases = PhaseClock(lambda: self.now)
        self.live = LiveMetrics(config, 1000, self._phases, Clocks(unix=lambda: self.now, steady=lambda: self.now))
        self._said = Window()
        pool = SimpleNamespace(status=self._actors, queue=RequestQueue(max_in_flight=8, max_retries=1))
        self._buffer = SimpleNamespace(num_segments=0, num_taken=0, num_bytes=0, oldest_s=0.0)
        side: Any = RolloutSide(pool, self._buffer)  # type: ignore[arg-type]
        self.live.watch(side, ())
        self._step = 0

    def _actors(self) -> list[ActorStatus]:
        first = ActorStatus(
            name="actor-0",
            state="synced",
            version=self._step,
            num_owed=self._said.owed,
            num_running=self._said.owed,
            restarts=self._said.restarts,
            given_up=False,
            pid=1,
            idle_s=0.0,
        )
        return [first, replace(first, name="actor-1", restarts={})]

    def window(self, said: Window) -> None:
        """WINDOW_M minutes."""
        seconds = 60.0 * WINDOW_M
        if said.silent:
            self.now += seconds
            return
        self._said, self._step = said, self._step + 1
        self._buffer.num_segments = said.buffered
        self._phase("rollout")
        for _ in range(said.failures):
            outcome = Outcome(key=RequestKey(self._step), failure="ImageError: gone")
            self.live.outcome(outcome)
            self.live.quarantined(outcome)
        self.now += said.waits * seconds
        self._phase("train")
        self.now += (1 - said.waits) * seconds
        rollouts = RolloutTotals.of([said.stats] * ROLLOUTS).rollout_metrics(top_k=5)
        self.live.step(self._step, rollouts | {"policy/staleness_max": float(said.staleness), "time/step_s": seconds})
        self.live.event("publish", {"version": self._step})

    def _phase(self, name: str) -> None:
        self._phases.enter(name)
        self.live.phase(name, "")


def scenario(folder: Path, fault: Window) -> dict[str, list[float]]:
    """Series → its value after every window, for the series that the rules ask for."""
    run = Run(folder)
    values: dict[str, list[float]] = defaultdict(list)
    for at in range(WINDOWS):
        run.window(Window() if at < HEALTHY_WINDOWS else fault)
        for line in run.live.render().decode().splitlines():
            if line.partition("{")[0] in ASKED_FOR:
                name, _, value = line.rpartition(" ")
                values[name].append(float(value))
    run.live.close()
    return values


def unit_test(name: str, values: Mapping[str, list[float]], fires: list[str]) -> dict[str, Any]:
    """promtool's: nothing fires before the fault, and over the whole run `fires` and nothing else."""
    firing = 'ALERTS{alertstate="firing"}'
    ever = f"group by (alertname) (count_over_time({firing}[{WINDOWS * WINDOW_M}m]))"
    expected = [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in fires]
    return {
        "name": name,
        "interval": f"{WINDOW_M}m",
        "input_series": [
            {"series": series, "values": " ".join(f"{value:.3f}" for value in each)} for series, each in values.items()
        ],
        "promql_expr_test": [
            {"expr": firing, "eval_time": f"{(HEALTHY_WINDOWS - 1) * WINDOW_M}m", "exp_samples": []},
            {"expr": ever, "eval_time": f"{(WINDOWS - 1) * WINDOW_M}m", "exp_samples": expected},
        ],
    }


def test_each_alert_is_fired_by_its_condition_and_by_no_other(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    assert set(FAULTS) == {rule["alert"] for rule in alerts()}
    tests = [unit_test("healthy", scenario(tmp_path / "healthy", Window()), [])]
    tests += [unit_test(alert, scenario(tmp_path / alert, fault), [alert]) for alert, fault in FAULTS.items()]
    page = tmp_path / "alerts.yaml"
    page.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    done = subprocess.run([promtool, "test", "rules", str(page)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
