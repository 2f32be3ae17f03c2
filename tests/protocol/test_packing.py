"""The numbered invariants of `plan_packs`, and SPEC 13's selection of one pack."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.bins import best_fit, by_length, first_fit, min_bins
from protocol.packing import cost, drain, fifo_pack, padded_plan, plan_packs, select_pack
from protocol.segments import PackPlan
from tests.protocol.strategies import EXAMPLES

CAPACITY = 100


def cut_up(drawn: bytes) -> list[int]:
    """The pieces of full packs, mixed: no plan in as few packs leaves room."""
    lengths, room = [], CAPACITY
    for byte in drawn:
        lengths.append(min(1 + byte % CAPACITY, room))
        room = room - lengths[-1] or CAPACITY
    lengths.append(room)
    return lengths[1::2] + lengths[::2]


LENGTHS = st.one_of(
    st.binary(max_size=40).map(lambda drawn: [1 + b if b < CAPACITY else 30 + b % 26 for b in drawn]),
    st.binary(max_size=40).map(cut_up),
)
"""Anything, with a cluster between a third and a half of the capacity, or full packs; bytes are drawn fast."""
RANKS = st.integers(1, 6)
often = settings(max_examples=EXAMPLES, deadline=None)


def positions(plan: PackPlan) -> list[int]:
    return [position for row in plan.micro_batches for pack in row for position in pack]


def total(lengths: Sequence[int], pack: Sequence[int]) -> int:
    return sum(lengths[position] for position in pack)


def rank_costs(plan: PackPlan, lengths: Sequence[int]) -> list[float]:
    ranks = zip(*plan.micro_batches, strict=True)
    return [cost([lengths[position] for pack in packs for position in pack]) for packs in ranks]


@often
@given(lengths=LENGTHS, num_ranks=RANKS)
def test_plans_keep_the_structural_invariants(lengths: list[int], num_ranks: int) -> None:
    plan = plan_packs(lengths, capacity=CAPACITY, num_ranks=num_ranks)
    assert sorted(positions(plan)) == list(range(len(lengths))), "invariant 1"
    assert plan.carried == (), "invariant 1"
    packs = [pack for row in plan.micro_batches for pack in row]
    assert all(total(lengths, pack) <= CAPACITY for pack in packs), "invariant 2"
    assert all(len(row) == num_ranks for row in plan.micro_batches), "invariant 3"
    assert all(all(row) for row in plan.micro_batches[:-1]), "invariant 3"
    assert not lengths or any(0 in pack for pack in plan.micro_batches[0]), "invariant 4"
    assert all(list(pack) == sorted(pack) for pack in packs), "invariant 7"


@often
@given(lengths=LENGTHS, num_ranks=RANKS)
def test_no_rank_does_more_forwards_than_under_fifo_or_best_fit(lengths: list[int], num_ranks: int) -> None:
    """Invariant 5; one more than the bound of any packing is never needed at this size either."""
    forwards = len(plan_packs(lengths, capacity=CAPACITY, num_ranks=num_ranks).micro_batches)
    in_order = range(len(lengths))
    rivals = [
        first_fit(lengths, CAPACITY, in_order),
        best_fit(lengths, CAPACITY, in_order),
        best_fit(lengths, CAPACITY, by_length(lengths)),
        drain(lengths, CAPACITY),
    ]
    assert forwards <= min(-(-len(packs) // num_ranks) for packs in rivals)
    assert forwards >= -(-min_bins(lengths, CAPACITY) // num_ranks)


@often
@given(lengths=LENGTHS, num_ranks=RANKS)
def test_the_same_lengths_give_the_same_plan(lengths: list[int], num_ranks: int) -> None:
    """Invariant 6: also from an array, and after planning something else."""
    first = plan_packs(lengths, capacity=CAPACITY, num_ranks=num_ranks)
    plan_packs([7, 8, 9], capacity=CAPACITY, num_ranks=num_ranks)
    array = np.array(lengths, dtype=np.int32)
    assert plan_packs(array, capacity=CAPACITY, num_ranks=num_ranks) == first


@often
@given(oldest=st.integers(1, CAPACITY), others=st.binary(max_size=20))
def test_a_selected_pack_has_the_oldest_and_is_never_emptier_than_fifo_or_best_fit(oldest: int, others: bytes) -> None:
    lengths = [oldest, *(byte % (CAPACITY + 3) - 2 for byte in others)]
    pack = select_pack(lengths, CAPACITY)
    room = CAPACITY - lengths[0]
    rest = [position for position in by_length(lengths) if position > 0 and 0 < lengths[position] <= room]
    fullest = max((total(lengths, members) for members in best_fit(lengths, room, rest)), default=0)
    assert pack[0] == 0
    assert list(pack) == sorted(set(pack))
    assert total(lengths, pack) <= CAPACITY
    assert total(lengths, pack) >= max(total(lengths, fifo_pack(lengths, CAPACITY)), lengths[0] + fullest)


@often
@given(drawn=st.binary(max_size=6))
def test_the_lower_bound_is_never_above_an_exact_packing(drawn: bytes) -> None:
    lengths = [1 + byte % 12 for byte in drawn]
    assert min_bins(lengths, 12) <= exact_bins(lengths, 12) <= len(best_fit(lengths, 12, by_length(lengths)))


def exact_bins(lengths: Sequence[int], capacity: int) -> int:
    """By dynamic programming over subsets: (fewest bins, fill of the last) of each."""
    best = [(0, capacity)] + [(len(lengths) + 1, 0)] * ((1 << len(lengths)) - 1)
    for subset in range(1 << len(lengths)):
        bins, fill = best[subset]
        for position, length in enumerate(lengths):
            if not subset >> position & 1:
                after = (bins, fill + length) if fill + length <= capacity else (bins + 1, length)
                best[subset | 1 << position] = min(best[subset | 1 << position], after)
    return best[-1][0]


@often
@given(lengths=LENGTHS)
def test_draining_a_fifo_is_first_fit(lengths: list[int]) -> None:
    left, packs = list(range(len(lengths))), []
    while left:
        pack = [left[index] for index in fifo_pack([lengths[position] for position in left], CAPACITY)]
        packs.append(pack)
        left = [position for position in left if position not in pack]
    assert first_fit(lengths, CAPACITY, range(len(lengths))) == packs


@pytest.mark.parametrize("shape", ["lognormal", "uniform", "bimodal"])
def test_a_large_window_is_as_full_as_it_can_be_and_level(shape: str) -> None:
    lengths = window(shape, 4096)
    plan = plan_packs(lengths, capacity=16_000, num_ranks=64)
    bound = -(-min_bins(lengths, 16_000) // 64)
    costs = rank_costs(plan, lengths)
    assert bound / len(plan.micro_batches) >= 0.97
    assert (max(costs) - min(costs)) / np.mean(costs) < 0.03


def window(shape: str, count: int) -> list[int]:
    rng = np.random.default_rng(7)
    drawn = {
        "lognormal": rng.lognormal(7.4, 0.75, count),
        "uniform": rng.uniform(200, 16_000, count),
        "bimodal": np.where(rng.random(count) < 0.7, rng.normal(1500, 300, count), rng.normal(9000, 1200, count)),
    }[shape]
    return [int(length) for length in np.clip(drawn, 200, 16_000)]


def test_a_small_window_is_spread_over_all_ranks() -> None:
    plan = plan_packs([6, 3, 2, 2], capacity=10, num_ranks=2)
    assert plan == PackPlan(micro_batches=(((0,), (1, 2, 3)),))


def test_a_rank_without_a_segment_gets_an_empty_pack() -> None:
    plan = plan_packs([6, 3], capacity=10, num_ranks=3)
    assert sorted(map(len, plan.micro_batches[0])) == [0, 1, 1]


def test_nothing_to_plan_is_an_empty_plan() -> None:
    assert plan_packs([], capacity=10, num_ranks=2) == PackPlan(micro_batches=())
    assert padded_plan([], per_device_batch_size=2, num_ranks=2) == PackPlan(micro_batches=())


@pytest.mark.parametrize(
    ("lengths", "capacity", "num_ranks", "words"),
    [
        ([5, 11], 10, 1, "lengths\\[1\\] is 11 tokens, expected 1..10"),
        ([5, 0], 10, 1, "lengths\\[1\\] is 0 tokens"),
        ([5], 0, 1, "capacity must be > 0 tokens, got 0"),
        ([5], 10, 0, "num_ranks must be > 0, got 0"),
    ],
)
def test_impossible_input_is_refused_with_its_numbers(
    lengths: list[int], capacity: int, num_ranks: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        plan_packs(lengths, capacity=capacity, num_ranks=num_ranks)


def test_cost_is_linear_plus_quadratic() -> None:
    assert cost([54_000]) == 108_000
    assert cost([1000, 1000]) < cost([2000])


def test_padded_batches_keep_the_order_and_level_the_last_row() -> None:
    plan = padded_plan([1] * 7, per_device_batch_size=2, num_ranks=2)
    assert plan.micro_batches == (((0, 2), (1, 3)), ((4, 6), (5,)))
    assert padded_plan([1] * 7, per_device_batch_size=3, num_ranks=2).micro_batches[1] == ((6,), ())
    with pytest.raises(ValueError, match="per_device_train_batch_size must be > 0, got 0"):
        padded_plan([1], per_device_batch_size=0, num_ranks=1)


@pytest.mark.parametrize(
    ("lengths", "pack"),
    [
        ([6, 3, 2, 2], (0, 2, 3)),
        ([6, 3, 2, 2, 2], (0, 2, 3)),
        ([5, 5, 3, 2], (0, 1)),
        ([10, 1, 1], (0,)),
        ([3, 0, 7], (0, 2)),
        ([], ()),
    ],
)
def test_selection_follows_the_worked_examples(lengths: list[int], pack: tuple[int, ...]) -> None:
    assert select_pack(lengths, 10) == pack


def test_selection_reaches_the_best_fit_total_where_an_emptiest_bin_rule_does_not() -> None:
    assert select_pack([1, 5, 9, 2, 1], 12) == (0, 2, 3)


def test_draining_follows_the_worked_example() -> None:
    lengths = [4000, 9000, 3000, 12_000, 5000, 2500, 700]
    assert drain(lengths, 16_000) == [[0, 1, 2], [3, 5, 6], [4]]


@pytest.mark.parametrize(("lengths", "capacity"), [([5, 12], 10), ([12], 10), ([0, 3], 10), ([3], 0)])
def test_selection_refuses_what_insertion_should_have_refused(lengths: list[int], capacity: int) -> None:
    with pytest.raises(ValueError, match="packing: "):
        select_pack(lengths, capacity)
