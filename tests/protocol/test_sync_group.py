"""Groups for broadcasts: no two engines share a rank, and another membership is another generation."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from protocol.sync_group import ALIGNMENT, GroupPlanner, layout


def planner(ranks_per_engine: int) -> GroupPlanner:
    ports = iter(range(7000, 7100))
    return GroupPlanner(ranks_per_engine, 60.0, lambda: ("10.0.0.1", next(ports)))


def test_two_engines_of_two_gpus_have_four_ranks_after_the_learners() -> None:
    group = planner(2).group_for(["actor-0", "actor-1"])
    assert (group.world_size, dict(group.offsets)) == (5, {"actor-0": 1, "actor-1": 3})
    assert (group.address, group.port, group.generation) == ("10.0.0.1", 7000, 1)


def test_a_group_is_kept_while_its_members_are_the_same_processes() -> None:
    groups = planner(1)
    first = groups.group_for(["actor-0", "actor-1"])
    assert groups.group_for(["actor-0", "actor-1"]) is first
    restarted = groups.group_for(["actor-0", "actor-1-1"])
    assert (restarted.generation, restarted.port) == (2, 7001)
    assert groups.group_for(["actor-0"]).world_size == 2


def test_a_learner_without_engines_is_alone() -> None:
    assert planner(4).group_for([]).world_size == 1


@given(st.integers(1, 8), st.integers(1, 16))
def test_ranks_of_engines_are_all_ranks_but_the_learners(ranks: int, engines: int) -> None:
    group = planner(ranks).group_for([f"actor-{i}" for i in range(engines)])
    taken = [offset + rank for offset in group.offsets.values() for rank in range(ranks)]
    assert sorted([0, *taken]) == list(range(group.world_size))


@given(st.lists(st.integers(1, 1000), max_size=20))
def test_arrays_of_a_buffer_are_aligned_and_apart(sizes: list[int]) -> None:
    offsets, total = layout(sizes)
    ends = [offset + size for offset, size in zip(offsets, sizes, strict=True)]
    assert all(offset % ALIGNMENT == 0 for offset in offsets)
    assert all(end <= start for end, start in zip(ends, [*offsets[1:], total], strict=False))
