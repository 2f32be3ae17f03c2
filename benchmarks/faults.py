"""The long fault suite: at least 200 faults, 44 of them on real vLLM, and the time to recover from each kind.

Real pool, buffer, loop and Ray. A fault hits a run that goes on: kills and stops of an actor while it generates, loads
or starts, a load that fails half-way or attests wrong bytes, an engine that raises or answers garbage, a node that is
lost with its objects. A run that loses a record, trains one twice or out of order, trains on weights older than
allowed, or misses a deadline ends the program with an error; so the zeros in the table are asserted, not counted.

`--simulated N --vllm N` set the numbers of faults (0: leave that part out). The whole takes an hour or more; its parts
can be run by themselves, with what they print given to `--parts` afterwards:

    RAY_AUTH_MODE=disabled python -m tests.faults.suite --engine vllm --faults 44 > vllm.json
    python -m benchmarks.faults --parts simulated=simulated.json vllm=vllm.json
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.reporting import finish, print_table
from tests.faults.suite import in_own_process


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulated", type=int, default=162)
    parser.add_argument("--vllm", type=int, default=44)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--parts", nargs="+", default=[], metavar="ENGINE=FILE", help="what was run before")
    parser.add_argument("--write", action="store_true", help="store the result with the hardware's name")
    arguments = parser.parse_args()
    ran = (part.split("=", 1) for part in arguments.parts)
    parts: dict[str, dict[str, Any]] = {
        engine: json.loads(Path(file).read_text(encoding="utf-8").splitlines()[-1]) for engine, file in ran
    }
    for engine, count in (("simulated", arguments.simulated), ("vllm", arguments.vllm)):
        if count and engine not in parts:
            asked = ("--engine", engine, "--faults", str(count), "--seed", str(arguments.seed))
            parts[engine] = in_own_process(*asked, timeout_s=120 * count + 600)
    rows = [
        [engine, kind, len(seconds), statistics.median(seconds), max(seconds)]
        for engine, part in parts.items()
        for kind, seconds in sorted(part["recoveries"].items())
    ]
    columns = ["engine", "fault", "times", "recovery median s", "recovery max s"]
    print_table("Faults: 0 records lost, 0 trained twice, 0 hangs, 0 too old", columns, rows)
    result = {
        "faults": sum(row[2] for row in rows),
        "records_lost": 0,
        "trained_twice": 0,
        "hangs": 0,
        "too_old": 0,
        "parts": parts,
    }
    finish("faults", result, write=arguments.write)


if __name__ == "__main__":
    main()
