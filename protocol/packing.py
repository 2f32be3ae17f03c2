"""Which segments share a padding-free row: integers in, a plan out (SPEC 13, A7-A9).

Two doors:

- `plan_packs` plans a whole optimizer step over all ranks at once; the driver uses it, through `carry` where segments
  may wait for the next window.
- `select_pack` picks one pack from one rank's buffer exactly as SPEC 13 words it; `drain` repeats it. They are the
  yardstick that the plan never falls below.

Nothing is left over: `effective_batch_size` raw rollouts per optimizer step must be a fact (SPEC A9, part C). Ranks
that find nothing in the last micro-batch get an empty tuple there.

The cost model. A token costs the same in every linear layer, and causal attention costs it in proportion to what
precedes it in its own segment, so a segment costs `length + length**2 / ATTENTION_TOKENS` token units: packing does
not change the sum of costs, only who pays it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from .bins import Bins, best_fit, by_length, first_fit, min_bins
from .segments import PackPlan
from .selection import drain, fifo_pack, select_pack

__all__ = ["cost", "drain", "fifo_pack", "padded_plan", "plan_packs", "select_pack"]

ATTENTION_TOKENS = 54_000
"""Length at which a segment's attention costs as much as its linear layers: 2 * 8e9 FLOPs per token in the linear
layers of an 8B model against 2 * length * 4096 (heads x head size) * 36 (layers) in causal attention."""

DRAIN_LIMIT = 256
"""Largest window that is also drained pack by pack when that could save a forward: draining is quadratic."""

Lengths = Sequence[int] | npt.NDArray[np.integer]


def cost(lengths: Lengths) -> float:
    """Work of segments in one row or rank, in token units: `sum(l + l**2 / ATTENTION_TOKENS)`."""
    return sum(_cost(int(length)) for length in lengths) / ATTENTION_TOKENS


def plan_packs(lengths: Lengths, *, capacity: int, num_ranks: int) -> PackPlan:
    """One optimizer step over all ranks: positions (oldest first) of `lengths` to `[micro-batch][rank]` packs.

    `plan_packs([6, 3, 2, 2], capacity=10, num_ranks=2)` → `(((0,), (1, 2, 3)),)`: one forward on each rank.

    1. Every position is in exactly one pack.
    2. No pack is longer than `capacity`.
    3. Every micro-batch has one entry per rank, and only the last one may have empty entries.
    4. The oldest position is in the first micro-batch.
    5. No rank does more forwards than when the packs of a drained FIFO, of best fit (in order or descending) or, up
       to DRAIN_LIMIT segments, of SPEC 13's selection are dealt out to the ranks: the mean pack is never emptier.
    6. The plan is a function of its arguments: same input, same plan.
    7. Positions ascend within a pack.

    Strategy: find the fewest packs first; then, in that many forwards, level the work of the ranks (`_arrange`).
    O(n log n) for n segments.

    Raises ValueError when capacity or num_ranks is not positive, or a length is not in 1..capacity.
    """
    sizes = _checked(lengths, capacity, num_ranks)
    if not sizes:
        return PackPlan(micro_batches=())
    rows = _arrange(_fewest_packs(sizes, capacity, num_ranks), sizes, capacity, num_ranks)
    return PackPlan(micro_batches=tuple(tuple(tuple(sorted(pack)) for pack in row) for row in rows))


def padded_plan(lengths: Lengths, *, per_device_batch_size: int, num_ranks: int) -> PackPlan:
    """The plan of `packing: false`: right-padded batches of `per_device_batch_size` segments, in order.

    Consecutive positions go round the ranks, so that ranks differ by at most one segment in the last micro-batch;
    entries are empty where segments ran out. Raises ValueError when a count is not positive or a length is < 1.
    """
    if per_device_batch_size <= 0:
        raise ValueError(f"per_device_train_batch_size must be > 0, got {per_device_batch_size}; set it to 1 or more")
    sizes = _checked(lengths, None, num_ranks)
    step = per_device_batch_size * num_ranks
    rows = (range(start, min(start + step, len(sizes))) for start in range(0, len(sizes), step))
    return PackPlan(
        micro_batches=tuple(tuple(tuple(row[rank::num_ranks]) for rank in range(num_ranks)) for row in rows)
    )


def _checked(lengths: Lengths, capacity: int | None, num_ranks: int) -> list[int]:
    if num_ranks <= 0:
        raise ValueError(f"num_ranks must be > 0, got {num_ranks}; the learner group has at least one rank")
    if capacity is not None and capacity <= 0:
        raise ValueError(f"packing: capacity must be > 0 tokens, got {capacity}; set global_max_length")
    sizes = np.asarray(lengths, dtype=np.int64)
    bad = np.flatnonzero((sizes <= 0) | (sizes > (capacity if capacity is not None else np.iinfo(np.int64).max)))
    if bad.size:
        limit = f"1..{capacity}" if capacity is not None else "1 or more"
        raise ValueError(
            f"packing: lengths[{bad[0]}] is {sizes[bad[0]]} tokens, expected {limit} ({bad.size} of {sizes.size} are "
            "outside); the rollout side quarantines such segments before they are planned (SPEC A5), or raise "
            "global_max_length"
        )
    return [int(size) for size in sizes]


def _cost(length: int) -> int:
    """Cost in 1 / ATTENTION_TOKENS token units: integers, so that no rounding decides a tie."""
    return length * (ATTENTION_TOKENS + length)


def _fewest_packs(sizes: list[int], capacity: int, num_ranks: int) -> Bins:
    """Packs of all positions in as few forwards as any of the yardsticks of invariant 5."""

    def forwards(packs: int) -> int:
        return -(-packs // num_ranks)

    best = best_fit(sizes, capacity, by_length(sizes))
    bound = forwards(min_bins(sizes, capacity))
    rivals: tuple[Callable[[], Bins], ...] = (
        lambda: best_fit(sizes, capacity, range(len(sizes))),
        lambda: first_fit(sizes, capacity, range(len(sizes))),
        lambda: drain(sizes, capacity) if len(sizes) <= DRAIN_LIMIT else best,
    )
    for rival in rivals:
        if forwards(len(best)) == bound:
            break
        best = min(best, rival(), key=lambda packs: forwards(len(packs)))
    return best


def _arrange(packs: Bins, sizes: list[int], capacity: int, num_ranks: int) -> list[Bins]:
    """Rows of one pack per rank in as many forwards as `packs` needs; of three ways the one with the lowest peak load.

    Whole packs are right where rows are full, levelling the last row where only that one is not, and spreading where
    every row has room.
    """
    whole = _deal(packs, sizes, num_ranks)
    ways = (whole, _level_last(whole, sizes, capacity), _spread(sizes, capacity, num_ranks, len(whole)))
    return min((rows for rows in ways if rows is not None), key=lambda rows: max(_loads(rows, sizes)))


def _loads(rows: list[Bins], sizes: list[int]) -> list[int]:
    """Work of each rank over all rows."""
    return [sum(_cost(sizes[p]) for pack in packs for p in pack) for packs in zip(*rows, strict=True)]


def _deal(packs: Bins, sizes: list[int], num_ranks: int) -> list[Bins]:
    """Packs first: dearest packs share the first row, since ranks wait for each other; the pack of the oldest leads.

    In each row the dearest pack goes to the rank that has done the least so far.
    """
    price = {number: sum(_cost(sizes[position]) for position in pack) for number, pack in enumerate(packs)}
    order = sorted(price, key=lambda number: (0 not in packs[number], -price[number], min(packs[number])))
    loads = [0] * num_ranks
    rows: list[Bins] = []
    for start in range(0, len(order), num_ranks):
        chunk = sorted(order[start : start + num_ranks], key=lambda number: -price[number])
        row: Bins = [[] for _ in range(num_ranks)]
        ranks = sorted(range(num_ranks), key=loads.__getitem__)
        for number, rank in zip(chunk, ranks, strict=False):
            row[rank] = packs[number]
            loads[rank] += price[number]
        rows.append(row)
    return rows


def _level_last(rows: list[Bins], sizes: list[int], capacity: int) -> list[Bins] | None:
    """The same rows, with the last one dealt segment by segment on top of what the ranks did before."""
    *full, last = rows
    loads = _loads(full, sizes) if full else [0] * len(last)
    leveled = _level([position for pack in last for position in pack], sizes, capacity, loads)
    return None if leveled is None else [*full, leveled]


def _spread(sizes: list[int], capacity: int, num_ranks: int, num_rows: int) -> list[Bins] | None:
    """Ranks first: level all segments over the ranks, then each rank's over its rows. None when a rank overflows."""
    ranks = _level(range(len(sizes)), sizes, capacity * num_rows, [0] * num_ranks)
    columns: list[Bins] = []
    for members in ranks or []:
        packs = _level(members, sizes, capacity, [0] * num_rows)
        if packs is None:
            packs = best_fit(sizes, capacity, sorted(members, key=lambda position: -sizes[position]))
            packs += [[] for _ in range(num_rows - len(packs))]
        if len(packs) > num_rows or sum(not pack for pack in packs) > 1:
            return None
        packs.sort(key=lambda pack: (0 not in pack, -sum(_cost(sizes[position]) for position in pack)))
        columns.append(packs)
    return [[column[row] for column in columns] for row in range(num_rows)] if columns else None


def _level(segments: Sequence[int], sizes: list[int], capacity: int, loads: list[int]) -> Bins | None:
    """Give each segment, longest first, to the bin with the least work that has room; None when none has.

    `loads` is the work that each bin (a rank, or a row of one rank) brings along.
    """
    bins: Bins = [[] for _ in loads]
    rooms = [capacity] * len(loads)
    heap = [(load, number) for number, load in enumerate(loads)]
    heapq.heapify(heap)
    for position in sorted(segments, key=lambda position: (-sizes[position], position)):
        full = []
        while heap and rooms[heap[0][1]] < sizes[position]:
            full.append(heapq.heappop(heap))
        if not heap:
            return None
        load, number = heap[0]
        bins[number].append(position)
        rooms[number] -= sizes[position]
        heapq.heapreplace(heap, (load + _cost(sizes[position]), number))
        for entry in full:
            heapq.heappush(heap, entry)
    return bins
