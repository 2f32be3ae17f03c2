"""What it costs to see: metrics, endpoint, TensorBoard, recorded rollouts and dumps on against off, for one demo run.

    python -m benchmarks.observability [--pairs 4] [--steps 40] [--folder FOLDER] [--write]

Short demo runs, off and on by turns, which of the two comes first by turns too. Both train the same rollouts to the
same losses (checked), so a pair differs in what is watched and in the machine's noise. `off` writes `metrics.jsonl`
and `events.jsonl`, which every run writes. `on` is the endpoint, scraped every second (a Prometheus asks every 15),
TensorBoard, recorded rollouts, and a monitor dump every tenth step.

Of each run, from the first step's record to the last's, so that starting engines is in neither:

*wall*        seconds per optimizer step; the median over pairs of (on - off) / off. Two `off` runs in a row differ by
              the noise that this stands in; on a machine that does other work too, that is far above two per cent.
*driver CPU*  CPU seconds per step of the driver's process, as a share of an `off` step. All of observing happens there,
              but for the traces that actors send, so this bounds what it can take from the loop: the loop waits for
              the other threads of its process at most while they compute. It is nearly free of noise.

The bar of 2 % is on the driver's CPU, and on the wall time where the noise lets it be seen. The imports of the first
dump, 0.8 s once in a run, weigh three times as much in 40 steps as in the demo's 120.

With `--folder` the runs stay there, and the next call goes on with them: a long measurement in several parts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.reporting import finish, print_table
from deploy.demo.scenes import write_scenes

ROOT = Path(__file__).resolve().parents[1]
BAR = 0.02
DUMPS = "custom.extra.rollout_matching.monitor_dump"
ARMS = {
    "off": ("metrics.enabled=false", "training.report_to=none", "rollout.record_bytes=0", f"{DUMPS}.enabled=false"),
    "on": ("metrics.enabled=true", "metrics.port=0", f"{DUMPS}.enabled=true", f"{DUMPS}.every_steps=10"),
}
RESULT = "measured.json"
"""In a run's folder: its `Measured`."""
SCRAPE_EVERY_S = 1.0
LOOK_EVERY_S = 0.2


class Measured(NamedTuple):
    """One run, between the first step's record and the last's."""

    step_s: float
    """Wall seconds per optimizer step."""
    cpu_s: float
    """CPU seconds of the driver's process per optimizer step."""
    scrapes: int
    losses: list[float]
    """Of every step: arms that trained the same work have the same."""


Runs = dict[str, list[Measured]]
"""Per arm, a run per pair."""


def run_demo(folder: Path, name: str, steps: int, arm: str) -> Measured:
    """A short demo run without evaluation; ends the benchmark with the run's own error where it fails."""
    overrides = [
        f"custom.train_jsonl={folder / 'train.jsonl'}",
        "custom.val_jsonl=null",
        f"training.output_dir={folder}",
        f"training.run_name={name}",
        f"training.max_steps={steps}",
        "training.eval_steps=null",
        *ARMS[arm],
    ]
    command = [sys.executable, "-m", "deploy.cli", "train", "--config", "configs/demo.yaml", *overrides]
    run = folder / name
    with (folder / f"{name}.log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        with Watcher(process.pid, run) as watcher:
            code = process.wait(timeout=3600)
    if code != 0:
        raise SystemExit(f"the demo run {name} ended with {code}:\n{(folder / f'{name}.log').read_text()[-2000:]}")
    records = step_records(run)
    measured = Measured(
        step_s=(records[-1]["time"] - records[0]["time"]) / (len(records) - 1),
        cpu_s=watcher.cpu_s,
        scrapes=watcher.num_scrapes,
        losses=[record["loss/total"] for record in records],
    )
    (run / RESULT).write_text(json.dumps(measured._asdict()))
    return measured


def step_records(run: Path) -> list[dict[str, float]]:
    """The whole lines of a run's metrics that are optimizer steps; none before there is a file."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if "time/step_s" in record]


class Watcher:
    """Beside a run: scrapes it as soon as it has an address, and reads its CPU time when a step is written down."""

    def __init__(self, pid: int, run: Path) -> None:
        self._pid, self._run = pid, run
        self._end = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._scrape, self._look)]
        self._readings: list[tuple[int, float]] = []
        self.num_scrapes = 0

    @property
    def cpu_s(self) -> float:
        """CPU seconds per step, between the first and the last step that were seen."""
        (first, before), (last, after) = self._readings[0], self._readings[-1]
        return (after - before) / (last - first)

    def __enter__(self) -> Watcher:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join(timeout=30)

    def _scrape(self) -> None:
        while not self._end.wait(SCRAPE_EVERY_S):
            with suppress(OSError):  # not there yet, or not there any more: the run decides
                address = (self._run / "metrics_address").read_text().strip()
                with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as answer:
                    answer.read()
                self.num_scrapes += 1

    def _look(self) -> None:
        known = 0
        while not self._end.wait(LOOK_EVERY_S):
            records = len(step_records(self._run))
            if records > known:
                known = records
                with suppress(OSError):  # the process has ended: the step before is the last one that was seen
                    self._readings.append((records, cpu_seconds(self._pid)))


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, its threads included, its children not (proc(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(folder: Path, pairs: int, steps: int) -> Runs:
    """`pairs` more of off and on; returns all that the folder holds, in their order."""
    first = len(measured_runs(folder)["off"])
    for number in range(first, first + pairs):
        for arm in ARMS if number % 2 == 0 else reversed(ARMS):
            measured = run_demo(folder, f"{arm}-{number}", steps, arm)
            print(
                f"{number:2} {arm:4} {measured.step_s:.3f} s a step, driver {1e3 * measured.cpu_s:.1f} ms CPU, "
                f"{measured.scrapes} scrapes",
                file=sys.stderr,
                flush=True,
            )
    return measured_runs(folder)


def measured_runs(folder: Path) -> Runs:
    """The measured runs of a folder; a pair that lacks one of its two ends them."""
    found: Runs = {arm: [] for arm in ARMS}
    for number in itertools.count():
        paths = {arm: folder / f"{arm}-{number}" / RESULT for arm in ARMS}
        if not all(path.exists() for path in paths.values()):
            return found
        for arm, path in paths.items():
            found[arm].append(Measured(**json.loads(path.read_text())))
    raise AssertionError("the loop above does not end")


def report(runs: Runs, steps: int) -> None:
    """A table, one sentence, and the JSON."""
    pairs = list(zip(runs["on"], runs["off"], strict=True))
    if len(pairs) < 2:
        print(f"{len(pairs)} pair so far; two are needed to see the noise: go on with --folder")
        return
    wall = [on.step_s / off.step_s - 1 for on, off in pairs]
    cpu = [(on.cpu_s - off.cpu_s) / off.step_s for on, off in pairs]
    noise = statistics.median(abs(b.step_s / a.step_s - 1) for a, b in itertools.pairwise(runs["off"]))
    resolved, same = noise < BAR, all(on.losses == off.losses for on, off in pairs)
    result = {
        "steps_per_run": steps,
        "step_s": {arm: [each.step_s for each in measured] for arm, measured in runs.items()},
        "driver_cpu_s_per_step": {arm: [each.cpu_s for each in measured] for arm, measured in runs.items()},
        "wall_on_off": {"median": statistics.median(wall), "pairs": wall, "off_against_off": noise},
        "driver_cpu_of_a_step": {"median": statistics.median(cpu), "pairs": cpu},
        "same_losses": same,
        "bar": BAR,
        "wall_is_resolved": resolved,
        "within_bar": statistics.median(cpu) < BAR and (not resolved or statistics.median(wall) < BAR),
    }
    rows = [
        [number, off.step_s, on.step_s, f"{w:+.1%}", 1e3 * off.cpu_s, 1e3 * on.cpu_s, f"{c:+.2%}"]
        for number, ((on, off), w, c) in enumerate(zip(pairs, wall, cpu, strict=True))
    ]
    columns = ["pair", "off, s a step", "on", "wall", "off, driver CPU ms a step", "on", "driver CPU of a step"]
    print_table("Demo runs, off and on by turns", columns, rows)
    print(
        f"observability takes {statistics.median(cpu):.2%} of a step as driver CPU (bar: {BAR:.0%}); "
        f"wall time, paired: {statistics.median(wall):+.1%}, while two off runs in a row differ by {noise:.1%}; "
        f"same losses: {same}"
    )
    finish("observability", result)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=4, help="pairs of runs to do now (default 4)")
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps of a run (default 40)")
    parser.add_argument("--folder", type=Path, help="keep the runs here, and count those that are here")
    parser.add_argument("--write", action="store_true", help="store the result in benchmarks/results")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rollmatch-observability-") as name:
        folder = (chosen.folder or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        write_scenes(folder, "train", 512, seed=1)
        report(measure(folder, chosen.pairs, chosen.steps), chosen.steps)


if __name__ == "__main__":
    main()
