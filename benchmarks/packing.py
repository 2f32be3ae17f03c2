"""Packs of one optimizer step: FIFO, first-fit decreasing, the binpacking package and our planner on the same input.

    python -m benchmarks.packing [--write]

*Packs* is what a method needs on one rank, beside a lower *bound* on what any method needs. The baselines know one rank
only; for more, their packs are dealt round robin, as a sampler would. *Fill* is tokens / (forwards x ranks x capacity):
a rank that waits for another's forward fills none. *Of bound* compares the forwards with the bound's. *Imbalance* is
(dearest - cheapest rank) / mean cost; *lockstep* is the time of a step whose ranks wait for each other after each
forward, relative to a perfect division.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import binpacking
import numpy as np

from benchmarks.reporting import finish, print_table
from protocol.bins import Bins, by_length, first_fit, min_bins
from protocol.packing import cost, plan_packs

CAPACITY = 16_000
Rows = Sequence[Sequence[Sequence[int]]]
"""`[micro-batch][rank]` → positions."""

SCALES = ((4096, 64, 1), (32, 8, 100))
"""(segments, ranks, windows averaged): the target's scale, and the runbook's window on one node."""


def lengths(shape: str, count: int, rng: np.random.Generator) -> list[int]:
    """LVIS-like answers (lognormal, tail beyond 11k tokens), uniform, and short answers with a mode of long ones."""
    if shape == "LVIS-like":
        drawn = rng.lognormal(7.4, 0.75, count)
    elif shape == "uniform":
        drawn = rng.uniform(200, 12_000, count)
    else:
        drawn = np.where(rng.random(count) < 0.7, rng.normal(1500, 300, count), rng.normal(9000, 1200, count))
    return [int(length) for length in np.clip(drawn, 200, CAPACITY)]


def fifo(sizes: list[int], num_ranks: int) -> Rows:
    return round_robin(first_fit(sizes, CAPACITY, range(len(sizes))), num_ranks)


def first_fit_decreasing(sizes: list[int], num_ranks: int) -> Rows:
    return round_robin(first_fit(sizes, CAPACITY, by_length(sizes)), num_ranks)


def package(sizes: list[int], num_ranks: int) -> Rows:
    return round_robin(
        [list(found) for found in binpacking.to_constant_volume(dict(enumerate(sizes)), CAPACITY)], num_ranks
    )


def ours(sizes: list[int], num_ranks: int) -> Rows:
    return plan_packs(sizes, capacity=CAPACITY, num_ranks=num_ranks).micro_batches


METHODS: dict[str, Callable[[list[int], int], Rows]] = {
    "FIFO": fifo,
    "first-fit decreasing": first_fit_decreasing,
    "binpacking": package,
    "rollmatch": ours,
}


def round_robin(packs: Bins, num_ranks: int) -> Rows:
    padded = packs + [[] for _ in range(-len(packs) % num_ranks)]
    return [padded[start : start + num_ranks] for start in range(0, len(padded), num_ranks)]


def measure(method: Callable[[list[int], int], Rows], sizes: list[int], num_ranks: int) -> dict[str, float]:
    """One window, timed in this thread on one core, fastest of three."""
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        rows = method(sizes, num_ranks)
        seconds.append(time.perf_counter() - started)
    price = [[cost([sizes[position] for position in pack]) for pack in row] for row in rows]
    ranks = [sum(column) for column in zip(*price, strict=True)]
    mean = statistics.fmean(ranks)
    bound = min_bins(sizes, CAPACITY)
    return {
        "packs": len(method(sizes, 1)),
        "bound": bound,
        "forwards": len(rows),
        "fill": sum(sizes) / (len(rows) * num_ranks * CAPACITY),
        "of_bound": math.ceil(bound / num_ranks) / len(rows),
        "imbalance": (max(ranks) - min(ranks)) / mean,
        "lockstep": sum(max(row) for row in price) / mean,
        "ms": min(seconds) * 1e3,
    }


def main() -> None:
    measured: list[dict[str, Any]] = []
    for count, num_ranks, num_windows in SCALES:
        for shape in ("LVIS-like", "uniform", "bimodal"):
            rng = np.random.default_rng(7)
            windows = [lengths(shape, count, rng) for _ in range(num_windows)]
            ours(windows[0], num_ranks)  # first use loads code, which is nobody's planning time
            for name, method in METHODS.items():
                found = [measure(method, sizes, num_ranks) for sizes in windows]
                means = {key: statistics.fmean(one[key] for one in found) for key in found[0]}
                case = {"segments": count, "ranks": num_ranks, "windows": num_windows, "lengths": shape, "method": name}
                measured.append(case | {key: round(value, 4) for key, value in means.items()})
    columns = ("lengths", "method", "packs", "bound", "forwards", "fill", "of_bound", "imbalance", "lockstep", "ms")
    for count, num_ranks, num_windows in SCALES:
        rows = [[case[column] for column in columns] for case in measured if case["segments"] == count]
        title = f"{count} segments, {num_ranks} ranks, capacity {CAPACITY}, mean of {num_windows} window(s)"
        print_table(title, [column.replace("_", " ") for column in columns], rows)
    finish("packing", {"capacity": CAPACITY, "cases": measured})


if __name__ == "__main__":
    main()
