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
import itertools
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.integration.demo_runs import M_STEPS, PHASES, Result, Run, check_whole, last_step, settings, written


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
