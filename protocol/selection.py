"""One pack from one rank's buffer, exactly as SPEC 13 words it: the yardstick of `packing.plan_packs`.

Lengths are listed oldest first; packs are positions in that list.
"""

from __future__ import annotations

from collections.abc import Sequence

from .bins import Bins, best_fit, by_length


def fifo_pack(lengths: Sequence[int], capacity: int) -> tuple[int, ...]:
    """SPEC 13's baseline: scan from the oldest, take what still fits; non-positive lengths are passed over."""
    taken, room = [], capacity
    for position, length in enumerate(lengths):
        if 0 < length <= room:
            taken.append(position)
            room -= length
    return tuple(taken)


def select_pack(lengths: Sequence[int], capacity: int) -> tuple[int, ...]:
    """The next pack of one rank's buffer (SPEC 13, A7): ascending positions, 0 (the oldest) always among them.

    Beside the oldest goes the best of the bins that best fit makes of the rest, unless the FIFO baseline is as full.
    `select_pack([6, 3, 2, 2], 10)` → `(0, 2, 3)`; `select_pack([5, 5, 3, 2], 10)` → `(0, 1)`.

    Raises ValueError when capacity or the oldest length is not positive, or any length exceeds capacity; other
    non-positive lengths are passed over.
    """
    if capacity <= 0:
        raise ValueError(f"packing: capacity must be > 0 tokens, got {capacity}; set global_max_length")
    if not lengths:
        return ()
    if lengths[0] <= 0 or max(lengths) > capacity:
        raise ValueError(
            f"packing: the oldest length is {lengths[0]} and the longest {max(lengths)}, expected 1..{capacity}; "
            "the rollout side quarantines longer segments (SPEC A5), or raise global_max_length"
        )
    baseline = fifo_pack(lengths, capacity)
    room = capacity - lengths[0]
    rest = [position for position in by_length(lengths) if position > 0 and 0 < lengths[position] <= room]
    if not rest:
        return baseline
    bins = [sorted(members) for members in best_fit(lengths, room, rest)]
    best = min(bins, key=lambda members: (-sum(lengths[p] for p in members), len(members), members))
    candidate = (0, *best)
    fuller = sum(lengths[p] for p in candidate) > sum(lengths[p] for p in baseline)
    return candidate if fuller else baseline


def drain(lengths: Sequence[int], capacity: int) -> Bins:
    """`select_pack` again and again until nothing is left, as a rank's micro-steps would: packs of positions.

    `drain([6, 3, 2, 2, 5, 5, 4], 10)` → `[[0, 6], [1, 2, 4], [3, 5]]`. Quadratic. Raises what `select_pack` raises.
    """
    left = list(range(len(lengths)))
    packs: Bins = []
    while left:
        chosen = select_pack([lengths[position] for position in left], capacity)
        packs.append([left[index] for index in chosen])
        taken = set(chosen)
        left = [position for index, position in enumerate(left) if index not in taken]
    return packs
