"""Carry packing (`training.packing_carry`): an under-filled last forward of a window waits for the next window.

`packing.plan_packs` trains every window whole. Here the newest segments of a window may be held back where they alone
would make every rank do one more forward and fill it badly; they are the oldest of the next window and trained there
in any case. What the caller does, with B = effective_batch_size:

    window v     entries = carried from v - 1, oldest first, + B new ones in request order
                 plan = plan_carry(lengths, must_train=number carried in, ...)   once; all m_steps use this plan
                 release the planned entries, requeue `plan.carried`: they are the oldest READY ones
    last window  `packing_drop_last: false` plans with `flush=True`, which carries nothing; `true` leaves what is
                 carried untrained, and a resume rolls it out again

What is carried is a suffix of the request order, so "every request before position p was trained" stays true of a
checkpoint, and each segment is trained exactly once: in its window or in the next.

Staleness. Request i is in the new part of window i // B and is trained at version v <= i // B + 1. Admission with
S - 1 in place of S gives i // B <= w + S - 1 for a request admitted at version w (`staleness.admissible`), hence
v <= w + S: the bound that `max_staleness` S promises. With S = 0 nothing may be carried.
"""

from __future__ import annotations

from .packing import Lengths, plan_packs
from .segments import PackPlan


def plan_carry(
    lengths: Lengths, *, capacity: int, num_ranks: int, min_fill: float, must_train: int = 0, flush: bool = False
) -> PackPlan:
    """`plan_packs` of the oldest positions; the newest are carried where they would fill one more forward badly.

    `plan_carry([9, 8, 7], capacity=10, num_ranks=2, min_fill=0.65)` → `((0,), (1,))`, carried `(2,)`: the second
    forward would hold 7 of 20 tokens.

    1. Every position is in exactly one pack or in `carried`; `carried` is a suffix of the positions.
    2. The oldest position is planned, and so are the first `must_train`: nothing is carried twice.
    3. Nothing is carried with `flush`, nor where one forward holds all.
    4. What is carried saves at least one forward, and is shorter than `min_fill` of the tokens that a forward of all
       ranks holds. The oldest of it would cost one forward more.
    5. The plan of the rest has the invariants of `plan_packs`.

    Args:
        lengths: oldest first.
        must_train: how many of them were carried before; they come first.
        min_fill: `training.packing_min_fill_ratio`.

    Raises ValueError as `plan_packs` does, and when `must_train` is not in 0..len(lengths).
    """
    if not 0 <= must_train <= len(lengths):
        raise ValueError(
            f"packing: must_train is {must_train} of {len(lengths)} segments; the controller counts what it carried"
        )
    sizes = [int(length) for length in lengths]
    whole = plan_packs(sizes, capacity=capacity, num_ranks=num_ranks)
    if flush or len(whole.micro_batches) < 2:
        return whole
    fewest = len(whole.micro_batches) - 1
    first = _first_that_may_stay(sizes, min_fill * num_ranks * capacity, max(1, must_train))
    plan = plan_packs(sizes[:first], capacity=capacity, num_ranks=num_ranks)
    if first == len(sizes) or len(plan.micro_batches) > fewest:
        return whole
    kept, best = _grow(sizes, first, plan, capacity, num_ranks)
    return PackPlan(micro_batches=best.micro_batches, carried=tuple(range(kept, len(sizes))))


def _first_that_may_stay(sizes: list[int], limit: float, must_train: int) -> int:
    """Start of the longest suffix whose tokens stay below `limit` and that spares the first `must_train`."""
    start, tokens = len(sizes), 0
    while start > must_train and tokens + sizes[start - 1] < limit:
        start -= 1
        tokens += sizes[start]
    return start


def _grow(sizes: list[int], start: int, plan: PackPlan, capacity: int, num_ranks: int) -> tuple[int, PackPlan]:
    """The longest prefix found by bisection that needs no forward more than the first `start` do, and its plan."""
    low, high, best = start, len(sizes), plan
    forwards = len(plan.micro_batches)
    while high - low > 1:
        middle = (low + high) // 2
        longer = plan_packs(sizes[:middle], capacity=capacity, num_ranks=num_ranks)
        if len(longer.micro_batches) > forwards:
            high = middle
        else:
            low, best = middle, longer
    return low, best
