"""Carry packing: the numbered invariants of `plan_carry`, and whole runs that call it as the loop must."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.carry import plan_carry
from protocol.packing import plan_packs
from protocol.segments import PackPlan
from protocol.staleness import admissible, admission_staleness

CAPACITY = 100
LENGTHS = st.binary(max_size=40).map(lambda drawn: [1 + byte % CAPACITY for byte in drawn])
RANKS = st.integers(1, 4)


def positions(plan: PackPlan) -> list[int]:
    return sorted(position for row in plan.micro_batches for pack in row for position in pack)


@settings(max_examples=500, deadline=None)
@given(lengths=LENGTHS, num_ranks=RANKS, min_fill=st.floats(0.05, 1.0), data=st.data(), flush=st.booleans())
def test_plans_keep_the_invariants(
    lengths: list[int], num_ranks: int, min_fill: float, data: st.DataObject, flush: bool
) -> None:
    must_train = data.draw(st.integers(0, len(lengths)))
    plan = plan_carry(
        lengths, capacity=CAPACITY, num_ranks=num_ranks, min_fill=min_fill, must_train=must_train, flush=flush
    )
    kept = len(lengths) - len(plan.carried)
    assert (positions(plan), list(plan.carried)) == ([*range(kept)], [*range(kept, len(lengths))]), "invariant 1"
    assert kept >= min(len(lengths), max(1, must_train)), "invariant 2"
    whole = plan_packs(lengths, capacity=CAPACITY, num_ranks=num_ranks)
    if flush or len(whole.micro_batches) < 2:
        assert plan == whole, "invariant 3"
    if plan.carried:
        assert len(plan.micro_batches) < len(whole.micro_batches), "invariant 4"
        assert sum(lengths[kept:]) < min_fill * num_ranks * CAPACITY, "invariant 4"
        longer = plan_packs(lengths[: kept + 1], capacity=CAPACITY, num_ranks=num_ranks)
        assert len(longer.micro_batches) > len(plan.micro_batches), "invariant 4"
    assert all(all(row) for row in plan.micro_batches[:-1]), "invariant 5"
    assert all(sum(lengths[p] for p in pack) <= CAPACITY for row in plan.micro_batches for pack in row), "invariant 5"


def test_the_newest_segments_wait_where_they_would_fill_a_forward_badly() -> None:
    plan = plan_carry([9, 8, 7], capacity=10, num_ranks=2, min_fill=0.65)
    assert plan == PackPlan(micro_batches=(((0,), (1,)),), carried=(2,))
    assert plan_carry([9, 8, 7, 8], capacity=10, num_ranks=2, min_fill=0.65).carried == (), "15 of 20 is full enough"
    assert plan_carry([9, 8, 7], capacity=10, num_ranks=2, min_fill=0.65, must_train=3).carried == ()
    assert plan_carry([9, 8, 7], capacity=10, num_ranks=2, min_fill=0.65, flush=True).carried == ()
    assert plan_carry([3], capacity=10, num_ranks=2, min_fill=0.65).carried == (), "the oldest always trains"


def test_a_count_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="must_train is 2 of 1 segments"):
        plan_carry([3], capacity=10, num_ranks=1, min_fill=0.5, must_train=2)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("flush_last", [True, False])
def test_a_run_trains_each_segment_once_within_the_bound(seed: int, flush_last: bool) -> None:
    """Requests are answered in any order; windows take new ones in request order and what was carried first."""
    rng = random.Random(seed)
    batch, windows, max_staleness = rng.randint(2, 9), 12, rng.randint(1, 3)
    lengths = [rng.randint(5, CAPACITY) for _ in range(batch * windows)]
    begun: list[int] = []  # version at admission, by request number
    running: set[int] = set()
    trained: list[int] = []
    carried: list[int] = []
    num_carried = 0
    for version in range(windows):
        taken = range(version * batch, (version + 1) * batch)
        while any(request in running or request >= len(begun) for request in taken):
            room = admissible(
                version=version,
                max_staleness=admission_staleness(max_staleness, packing_carry=True),
                batch_size=batch,
                accepted=len(begun) - len(running),
                running=len(running),
            )
            for _ in range(min(room, len(lengths) - len(begun))):
                running.add(len(begun))
                begun.append(version)
            running.remove(rng.choice(sorted(running)))
        entries = [*carried, *taken]
        plan = plan_carry(
            [lengths[request] for request in entries],
            capacity=CAPACITY,
            num_ranks=rng.choice([1, 2]),
            min_fill=0.9,
            must_train=len(carried),
            flush=flush_last and version == windows - 1,
        )
        now = [entries[position] for position in positions(plan)]
        assert not set(carried) - set(now), "nothing is carried twice"
        assert max((version - begun[request] for request in now), default=0) <= max_staleness
        trained += now
        carried = [entries[position] for position in plan.carried]
        num_carried += len(carried)
        assert sorted(trained) == list(range(len(trained))), "a checkpoint needs one position only"
    assert sorted([*trained, *carried]) == list(range(len(lengths))), "each exactly once, nothing lost"
    assert not (flush_last and carried)
    assert num_carried > 0, "or this run shows nothing"


def test_what_fills_a_forward_exactly_to_the_ratio_is_trained() -> None:
    packs = {"capacity": 10, "num_ranks": 2, "min_fill": 0.5}
    assert plan_carry([9, 8, 10], **packs).carried == ()
    assert plan_carry([9, 8, 9], **packs).carried == (2,)
