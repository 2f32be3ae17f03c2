"""Classic one-dimensional bin packing over positions: the engines below `packing.plan_packs`.

Everything here works on the positions of a list of lengths and takes valid input for granted (0 < length <=
capacity): `packing` validates once. All results are deterministic functions of (lengths, capacity).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Bins = list[list[int]]
"""Positions per bin, in the order in which they were placed."""


def by_length(lengths: Sequence[int]) -> list[int]:
    """Positions by descending length; equal lengths keep their order (older first)."""
    return sorted(range(len(lengths)), key=lambda position: -lengths[position])


def best_fit(lengths: Sequence[int], capacity: int, order: Sequence[int]) -> Bins:
    """Put each position of `order` into the fullest bin with room (the first opened on a tie), else into a new one.

    `best_fit([1, 5, 9, 2], 12, [2, 1, 3, 0])` → `[[2, 3, 0], [1]]`. O(n log n) comparisons: the open bins are kept
    sorted by (room, number).
    """
    bins: Bins = []
    open_bins: list[tuple[int, int]] = []
    for position in order:
        length = lengths[position]
        where = bisect_left(open_bins, (length, -1))
        if where == len(open_bins):
            number, room = len(bins), capacity
            bins.append([])
        else:
            room, number = open_bins.pop(where)
        bins[number].append(position)
        if room > length:
            insort(open_bins, (room - length, number))
    return bins


def first_fit(lengths: Sequence[int], capacity: int, order: Sequence[int]) -> Bins:
    """Put each position of `order` into the first opened bin with room, else into a new one. O(n log n).

    In list order this is what draining a FIFO gives: filling one pack after the other, each by a scan from the oldest
    that takes what fits, ends in the same bins.
    """
    leaves = 1 << max(0, len(order) - 1).bit_length()
    rooms = [capacity] * (2 * leaves)  # a tournament tree: node i holds the largest room below it
    bins: Bins = []
    for position in order:
        length, node = lengths[position], 1
        while node < leaves:
            node *= 2
            if rooms[node] < length:
                node += 1
        if node - leaves == len(bins):
            bins.append([])
        bins[node - leaves].append(position)
        rooms[node] -= length
        while node > 1:
            node //= 2
            rooms[node] = max(rooms[2 * node], rooms[2 * node + 1])
    return bins


def min_bins(lengths: Sequence[int] | npt.NDArray[np.int64], capacity: int) -> int:
    """A lower bound on the number of bins of any packing (Martello and Toth's L2). O(n log n).

    For a threshold a <= capacity / 2: each length above capacity - a or above capacity / 2 needs a bin of its own,
    the first kind takes no length >= a beside it, and what the second kind cannot absorb needs more bins.
    `min_bins([6, 6, 6], 10)` is 3 although the lengths sum to less than two capacities.
    """
    ascending = np.sort(np.asarray(lengths, dtype=np.int64))
    if ascending.size == 0:
        return 0
    sums = np.concatenate(([0], np.cumsum(ascending)))
    thresholds = np.unique(np.concatenate(([0], ascending[2 * ascending <= capacity])))
    start = np.searchsorted(ascending, thresholds, side="left")
    half = int(np.searchsorted(2 * ascending, capacity, side="right"))
    alone = np.searchsorted(ascending, capacity - thresholds, side="right")  # from here on: nothing >= a fits beside
    absorbed = (alone - half) * capacity - (sums[alone] - sums[half])
    overflow = np.maximum(0, sums[half] - sums[start] - absorbed)
    return int(np.max(ascending.size - half + -(-overflow // capacity)))
