"""What it costs to see: metrics, endpoint, TensorBoard and dumps on against off, for the same demo run.

    python -m benchmarks.observability [--write] [--pairs 3] [--steps 24]

Two measurements, because a busy machine hides two per cent of a run's wall time:

*Runs*. Short demo runs, on and off by turns in one session. Measured is the wall time per optimizer step, from the
first step's record to the last's, so that starting engines is in neither; the ratio is that of the medians. `on` is the
endpoint, scraped every second, TensorBoard, recorded rollouts, and a monitor dump every tenth step; `off` writes
`metrics.jsonl` and `events.jsonl` only, which a run always writes. `on + vLLM` adds vLLM's own
metrics through Ray (`metrics.vllm`).

*Observer*. CPU seconds of everything that the observer does for one step of that demo, measured in this process over
100 steps: the same `RunObserver` is told again what the run told its own (answers with their traces, polls, step
records, publishes); all its threads count, and a scrape a second too. This, over the median wall time of an `off` step,
is the share that the project's bar of 2 % is about: what is taken from the loop even where the cores are busy.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.outcome import Outcome
from benchmarks.reporting import finish, print_table
from deploy.demo.scenes import write_scenes
from deploy.observer import RunObserver
from deploy.recorder import RecordedRollout, read_rollouts
from protocol.config import RunConfig, load_config
from protocol.contracts import SegmentMeta

ROOT = Path(__file__).resolve().parents[1]
DUMPS = "custom.extra.rollout_matching.monitor_dump"
ON = ["metrics.enabled=true", "metrics.port=0", f"{DUMPS}.enabled=true", f"{DUMPS}.every_steps=10"]
ARMS = {
    "off": ["metrics.enabled=false", "training.report_to=none", "rollout.record_bytes=0", f"{DUMPS}.enabled=false"],
    "on": ON,
    "on + vLLM": [*ON, "metrics.vllm=true"],
}
STEPS_OBSERVED = 100
PAUSE_S = 0.2
"""After each step, as the run's own work would: the writer's thread keeps up. Sleep is no CPU time."""


def overrides(folder: Path, name: str, steps: int) -> list[str]:
    """A short demo run without evaluation."""
    return [
        f"custom.train_jsonl={folder / 'train.jsonl'}",
        "custom.val_jsonl=null",
        f"training.output_dir={folder}",
        f"training.run_name={name}",
        f"training.max_steps={steps}",
        "training.eval_steps=null",
    ]


def run_demo(folder: Path, name: str, steps: int, arm: str) -> dict[str, float]:
    """Wall seconds per optimizer step of one run."""
    arguments = [*overrides(folder, name, steps), *ARMS[arm]]
    command = [sys.executable, "-m", "deploy.cli", "train", "--config", "configs/demo.yaml", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with Scraper(lambda: (folder / name / "metrics_address").read_text().strip()) as scraper:
        _, errors = process.communicate(timeout=3600)
    if process.returncode != 0:
        raise SystemExit(f"the demo run {name} ended with {process.returncode}: {errors[-2000:]}")
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    times = [line["time"] for line in lines if "time/step_s" in line]
    return {"step_s": (times[-1] - times[0]) / (len(times) - 1), "scrapes": float(scraper.num_scrapes)}


class Scraper:
    """A Prometheus that asks once a second, as soon as there is an address."""

    def __init__(self, address: Callable[[], str]) -> None:
        self._address = address
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._scrape, daemon=True)
        self.num_scrapes = 0

    def __enter__(self) -> Scraper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(timeout=30)

    def _scrape(self) -> None:
        while not self._end.wait(1.0):
            with suppress(OSError):  # not there yet, or not there any more: the run decides
                with urllib.request.urlopen(f"http://{self._address()}/metrics", timeout=10) as answer:
                    answer.read()
                self.num_scrapes += 1


@dataclass(frozen=True)
class Recorded:
    """What a run told its observer."""

    steps: list[dict[str, float]]
    outcomes: list[Outcome]


def recorded(run: Path) -> Recorded:
    """The step records and the rollouts of a run, as the loop hands them over."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    dropped = {"step", "time"}
    steps = [{k: v for k, v in line.items() if k not in dropped} for line in lines if "time/step_s" in line]
    return Recorded(steps, [outcome(each) for each in read_rollouts(run)])


def outcome(rollout: RecordedRollout) -> Outcome:
    trace = rollout.trace
    new_tokens = trace.stats.rollout_len
    meta = SegmentMeta(
        key=trace.key,
        length=trace.stats.encoded_len,
        num_bytes=12 * trace.stats.encoded_len,
        first_version=0,
        last_version=0,
        new_tokens=new_tokens,
        finish_reason="stop",
        stats=trace.stats,
    )
    return Outcome(
        key=trace.key,
        meta=meta,
        new_tokens=new_tokens,
        finish_reason="stop",
        latency_s=rollout.latency_s,
        trace=rollout.encoded,
        actor=rollout.actor,
    )


def observer_cpu(config: RunConfig, told: Recorded) -> float:
    """CPU seconds per step of the observer's work, its threads included, on what a run told its own."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    outcomes = itertools.cycle(told.outcomes)
    began = time.process_time()
    with RunObserver(config, STEPS_OBSERVED) as observer:
        for step in range(1, STEPS_OBSERVED + 1):
            metrics = told.steps[(step - 1) % len(told.steps)]
            if not metrics["rollout/buffer_reuse"]:
                for left in range(32, 0, -1):
                    observer.phase("rollout", f"{left} of 32 segments")
                    observer.outcome(next(outcomes))
            observer.phase("train", "the learner's optimizer step")
            if "time/sync_s" in metrics:
                observer.phase("sync", f"version {step} on every engine")
                observer.event("publish", version=step, checksums=["0" * 16], engines=[{"version": step}])
            observer.step(step, dict(metrics))
            time.sleep(PAUSE_S)
    dropped = [line for line in (config.run_dir / "metrics.jsonl").open() if json.loads(line).get("dump/dropped")]
    assert not dropped, "what the writer drops costs nothing, and would be missing here"
    return (time.process_time() - began) / STEPS_OBSERVED


def scrape_cpu(config: RunConfig, told: Recorded) -> float:
    """CPU seconds of one scrape, client included."""
    config.run_dir.mkdir(parents=True, exist_ok=True)
    with RunObserver(config, 1) as observer:
        observer.step(1, dict(told.steps[0]))
        address = (config.run_dir / "metrics_address").read_text().strip()
        began = time.process_time()
        for _ in range(50):
            urllib.request.urlopen(f"http://{address}/metrics", timeout=10).read()
        return (time.process_time() - began) / 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rollmatch-observability-") as name:
        folder = Path(name)
        write_scenes(folder, "train", 512, seed=1)
        runs: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for pair in range(chosen.pairs):
            order = list(ARMS) if pair % 2 == 0 else list(reversed(ARMS))
            for arm in order:
                done = run_demo(folder, f"{arm.replace(' ', '')}-{pair}", chosen.steps, arm)
                runs[arm].append(done["step_s"])
                print(f"{arm:10} {done['step_s']:.3f} s a step, {done['scrapes']:.0f} scrapes", file=sys.stderr)
        report(folder, runs, chosen.steps)


def report(folder: Path, runs: dict[str, list[float]], steps: int) -> None:
    told = recorded(folder / "on-0")
    medians = {arm: statistics.median(seconds) for arm, seconds in runs.items()}
    configs = {
        arm: load_config(ROOT / "configs" / "demo.yaml", overrides=[*overrides(folder, f"cpu-{arm}", steps), *more])
        for arm, more in ARMS.items()
        if arm != "on + vLLM"
    }
    cpu = {arm: observer_cpu(config, told) for arm, config in configs.items()}
    scrape = scrape_cpu(configs["on"], told)
    share = (cpu["on"] - cpu["off"] + scrape * medians["off"]) / medians["off"]
    rows = [[arm, len(runs[arm]), medians[arm], medians[arm] / medians["off"] - 1] for arm in ARMS]
    print_table("Demo runs, off and on by turns", ["arm", "runs", "s per step (median)", "against off"], rows)
    cpu_rows = [[arm, seconds * 1e3, seconds / medians["off"]] for arm, seconds in cpu.items()]
    cpu_rows.append(["one scrape", scrape * 1e3, scrape / medians["off"]])
    print_table("The observer's CPU", ["what", "ms", "of a step"], cpu_rows)
    print(f"observability takes {share:.2%} of a step (bar: 2 %), scraped every second")
    result: dict[str, Any] = {
        "steps_per_run": steps,
        "step_s": runs,
        "step_s_median": medians,
        "wall_ratio_on_off": medians["on"] / medians["off"],
        "wall_ratio_vllm_on": medians["on + vLLM"] / medians["on"],
        "observer_cpu_ms_per_step": {arm: seconds * 1e3 for arm, seconds in cpu.items()},
        "scrape_cpu_ms": scrape * 1e3,
        "cpu_share_of_step": share,
        "bar": 0.02,
    }
    finish("observability", result)


if __name__ == "__main__":
    main()
