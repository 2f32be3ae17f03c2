"""Runs that are killed at random moments and resumed, against one that was not: losses, weights, rollouts and ledger.

`python -m tests.integration.kill_suite [--points 10] [--kills 2] [--seed 0]` prints a line per kill point and exits
with 1 if a run differs.

A run is killed `kills` times before it may end; SIGKILL goes to the driver's whole process group. The phases take
turns; which of the phase's occurrences that are left, and how far into it, is drawn with the seed. After each kill
nothing may be alive and what is on disk must be a part of what the undisturbed run wrote; the same command with
`--resume auto` must then end where that run ended.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from deploy.checkpoints import newest_checkpoint
from deploy.demo.scenes import write_scenes
from deploy.ledger import LedgerLine, check_ledger, read_ledger
from tests.integration.conftest import ROOT, processes_with

PHASES = ("start", "rollout", "train", "sync", "save")
BATCH, M_STEPS = 4, 2
"""Rollouts of a window, and the demo's optimizer steps on it."""
DEADLINE_S = 1200
TIMES = re.compile(r"^(time|sync)/|^time$|_s$|writer|health|memory")
"""Metrics that differ from run to run."""


@dataclass
class Run:
    """One process of the command line, in a process group of its own."""

    folder: Path
    overrides: Sequence[str]
    resume: bool = False
    marker: str = field(default_factory=lambda: uuid.uuid4().hex)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = self.folder / f"log-{self.marker[:8]}.txt"
        self.launched = time.time()
        command = [sys.executable, "-m", "deploy.cli", "train", "--config", "configs/demo.yaml"]
        where = [f"training.output_dir={self.folder}", "training.run_name=run"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *self.overrides, *where, *(["--resume", "auto"] if self.resume else [])],
                cwd=ROOT,
                env=os.environ | {"ROLLMATCH_TEST_MARKER": self.marker},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def phases(self) -> Iterator[tuple[str, float]]:
        """(phase, time of the clock) of each that this process begins, until it has ended."""
        seen, end = 0, time.monotonic() + DEADLINE_S
        while self.process.poll() is None:
            events = whole_lines(self.folder / "run" / "events.jsonl")
            phases = [(event["name"], event["since"]) for event in events if event["kind"] == "phase"]
            found = [phase for phase in dict.fromkeys(phases) if phase[0] in PHASES and phase[1] > self.launched]
            yield from found[seen:]
            seen = len(found)
            assert time.monotonic() < end, f"the run did not end within {DEADLINE_S} s"
            time.sleep(0.05)

    def finish(self) -> None:
        """Waits for success."""
        code = self.process.wait(timeout=DEADLINE_S)
        assert code == 0, f"exit code {code}: {self.log.read_text()[-3000:]}"

    def kill(self) -> float:
        """SIGKILL for the process group; seconds until no process of the run was left."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return self.seconds_until_gone()

    def seconds_until_gone(self, deadline_s: float = 60) -> float:
        began = time.monotonic()
        while alive := processes_with(self.marker):
            assert time.monotonic() - began < deadline_s, f"still alive after {deadline_s} s: {alive}"
            time.sleep(0.2)
        return time.monotonic() - began


class Result(NamedTuple):
    """What must not depend on whether a run was killed."""

    metrics: list[dict[str, Any]]
    """Of each step, all that is no time: equal only if the rollouts were the same token by token."""
    ledger: list[LedgerLine]
    weights: str
    """Checksum of the merged weights; empty before the last checkpoint."""

    @property
    def losses(self) -> list[float]:
        return [line["loss/total"] for line in self.metrics]


def written(run_dir: Path, num_steps: int) -> Result:
    """What a run has on disk, also if it was killed: a last line that was not written whole is no line."""
    metrics = whole_lines(run_dir / "metrics.jsonl")
    weights = run_dir / f"checkpoint-{num_steps}" / "merged" / "model.safetensors"
    return Result(
        metrics=[{k: v for k, v in line.items() if not TIMES.search(k)} for line in metrics if "loss/total" in line],
        ledger=read_ledger(run_dir),
        weights=hashlib.sha256(weights.read_bytes()).hexdigest() if weights.exists() else "",
    )


def whole_lines(path: Path) -> list[dict[str, Any]]:
    """Of a file that may be missing, or be written just now."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def check_whole(result: Result, num_steps: int) -> None:
    """Raises where a step is missing or doubled, or the ledger is no proof."""
    assert [line["step"] for line in result.metrics] == list(range(1, num_steps + 1)), "each step once"
    check_ledger(result.ledger, num_steps=num_steps, num_trained=BATCH * num_steps // M_STEPS)
    assert result.weights, "no last checkpoint"


class KillPoint(NamedTuple):
    phase: str
    occurrence: int
    """Within the process, from 0."""
    after_s: float


Spans = dict[str, float]
"""Seconds that an occurrence of each phase takes, about."""


def draw(phase: str, steps_left: int, save_steps: int, spans: Spans, generator: random.Random) -> KillPoint:
    """A moment of `phase` in a process that has `steps_left` to train."""
    windows = steps_left // M_STEPS
    left = {"start": 1, "rollout": windows, "train": windows, "sync": windows + 1, "save": -(-steps_left // save_steps)}
    return KillPoint(phase, generator.randrange(left[phase]), generator.random() * spans[phase])


def kill_at(run: Run, point: KillPoint) -> float:
    """Runs up to the point and kills there; seconds until nothing was left."""
    occurrences = (number for number, (phase, _) in enumerate(p for p in run.phases() if p[0] == point.phase))
    for number in occurrences:
        if number == point.occurrence:
            time.sleep(point.after_s)
            return run.kill()
    raise AssertionError(f"the run ended before {point}: {run.log.read_text()[-2000:]}")


def undisturbed(folder: Path, overrides: Sequence[str], num_steps: int) -> tuple[Result, Spans]:
    """A run that nobody kills, and the median length of its phases."""
    run = Run(folder, overrides)
    began = list(run.phases())
    run.finish()
    ends = [*(at for _, at in began[1:]), time.time()]
    run.seconds_until_gone()
    lengths: dict[str, list[float]] = {name: [] for name in PHASES}
    for (phase, at), end in zip(began, ends, strict=True):
        lengths[phase].append(end - at)
    result = written(folder / "run", num_steps)
    check_whole(result, num_steps)
    return result, {name: statistics.median(values) for name, values in lengths.items()}


def killed(
    folder: Path, overrides: Sequence[str], point: KillPoint, expected: Result, *, resume: bool
) -> dict[str, Any]:
    """Kills a run at the point, and looks at what it left."""
    gone_s = kill_at(Run(folder, overrides, resume=resume), point)
    run_dir = folder / "run"
    found = written(run_dir, len(expected.metrics))
    return {
        "killed_in": f"{point.phase} {point.occurrence + 1} + {point.after_s:.2f} s",
        "gone_after_s": round(gone_s, 1),
        "steps_on_disk": len(found.metrics),
        "half_written": [path.name for path in run_dir.glob(".*.writing")],
        "resumes_at": last_step(run_dir),
        "same_so_far": all(part == whole[: len(part)] for part, whole in zip(found[:2], expected[:2], strict=True)),
    }


def last_step(run_dir: Path) -> int:
    """Of the newest whole checkpoint; 0 without one."""
    newest = newest_checkpoint(run_dir)
    return int(newest.name.rpartition("-")[2]) if newest else 0


def resumed(folder: Path, overrides: Sequence[str], expected: Result) -> dict[str, bool]:
    """Lets a run that was killed end, and compares it."""
    run = Run(folder, overrides, resume=True)
    run.finish()
    run.seconds_until_gone()
    found = written(folder / "run", len(expected.metrics))
    check_whole(found, len(expected.metrics))
    same = {
        name: getattr(found, name) == getattr(expected, name) for name in ("losses", "metrics", "ledger", "weights")
    }
    return {f"same_{name}": value for name, value in same.items()}


def settings(folder: Path, num_steps: int, save_steps: int) -> list[str]:
    """The demo in small: windows of four rollouts, trained twice. The second epoch begins within 12 steps."""
    write_scenes(folder, "train", 20, seed=101)
    return [
        f"custom.train_jsonl={folder / 'train.jsonl'}",
        *("custom.val_jsonl=null", "training.eval_steps=null", f"training.effective_batch_size={BATCH}"),
        *(f"training.max_steps={num_steps}", f"training.save_steps={save_steps}", "training.save_total_limit=2"),
        *("training.warmup_steps=0", "training.report_to=[none]", "metrics.port=0"),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Runs killed at random moments, resumed, and compared.")
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--kills", type=int, default=2, help="of one run, before it may end")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    folder, generator = Path(tempfile.mkdtemp(prefix="rollmatch-kill-")), random.Random(arguments.seed)
    num_steps, save_steps = 12, 4
    overrides = settings(folder, num_steps, save_steps)
    expected, spans = undisturbed(folder / "undisturbed", overrides, num_steps)
    print(json.dumps({"undisturbed": {name: round(seconds, 2) for name, seconds in spans.items()}}), flush=True)
    points, failed, number = itertools.cycle(PHASES), 0, 0
    while number < arguments.points:
        own = folder / f"killed-{number}"
        for kill in range(min(arguments.kills, arguments.points - number)):
            point = draw(next(points), num_steps - last_step(own / "run"), save_steps, spans, generator)
            row = killed(own, overrides, point, expected, resume=kill > 0)
            failed += not row["same_so_far"]
            number += 1
            print(json.dumps(row), flush=True)
        same = resumed(own, overrides, expected)
        failed += not all(same.values())
        print(json.dumps(same), flush=True)
    print(json.dumps({"points": number, "failed": failed, "folder": str(folder)}))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
