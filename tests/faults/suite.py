"""One part of the fault suite as a program: `python -m tests.faults.suite --engine simulated --faults 9 --seed 1`.

Prints one line per fault on stderr and one JSON object on stdout. `tests/faults` runs a short form, `benchmarks.faults`
the long one; both start it as a process of its own, with Ray's token authentication off for the private test cluster.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.faults.harness import KINDS, FaultRun
from tests.faults.real import vllm_run
from tests.faults.simulated import TwoNodes, simulated_run


def plan(kinds: Sequence[str], count: int, seed: int) -> list[str]:
    """Every kind equally often, in a random order."""
    planned = list(itertools.islice(itertools.cycle(kinds), count))
    random.Random(seed).shuffle(planned)
    return planned


def runs(engine: str, kinds: Sequence[str], seed: int, per_run: int, scratch: Path) -> Iterator[FaultRun]:
    """Runs of at most `per_run` faults, with every way of publishing and staleness in turn."""
    modes = itertools.cycle([(1, "drain"), (0, "drain"), (1, "continue"), (2, "abort")])
    nodes = TwoNodes()
    try:
        for number, start in enumerate(range(0, len(kinds), per_run)):
            staleness, in_flight = next(modes)
            build = simulated_run if engine == "simulated" else vllm_run
            run = build(nodes, scratch=scratch, seed=seed + number, max_staleness=staleness, in_flight=in_flight)
            run.run(kinds[start : start + per_run])
            for kind, seconds in run.recoveries:
                print(
                    f"{engine} staleness {staleness} {in_flight}: {kind} {seconds:.1f} s", file=sys.stderr, flush=True
                )
            yield run
    finally:
        nodes.close()


def summary(done: Sequence[FaultRun]) -> dict[str, object]:
    """Recovery times by kind, and what was trained; the zeros are asserted by `FaultRun.verify`."""
    recoveries: dict[str, list[float]] = {}
    for kind, seconds in [pair for run in done for pair in run.recoveries]:
        recoveries.setdefault(kind, []).append(round(seconds, 2))
    return {
        "recoveries": recoveries,
        "windows": sum(run.learner.steps for run in done),
        "trained": sum(len(run.learner.trained) for run in done),
        "objects_lost": sum(run.learner.lost for run in done),
        "quarantined": [str(outcome.failure) for run in done for outcome in run.observer.quarantined],
    }


def in_own_process(*arguments: str, timeout_s: float) -> dict[str, Any]:
    """Runs a part of the suite and returns its summary; AssertionError with its last lines when it failed."""
    environment = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_raylet_start_wait_time_s": "180"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.suite", *arguments],
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["simulated", "vllm"], default="simulated")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--faults", type=int, help="default: each kind once")
    parser.add_argument("--per-run", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        kinds = plan(arguments.kinds, arguments.faults or len(arguments.kinds), arguments.seed)
        done = list(runs(arguments.engine, kinds, arguments.seed, arguments.per_run, Path(folder)))
    print(json.dumps(summary(done)))


if __name__ == "__main__":
    main()
