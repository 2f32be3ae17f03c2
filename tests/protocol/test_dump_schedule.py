"""Steps that write a monitor dump."""

from __future__ import annotations

from protocol.dump_schedule import dump_due


def steps(*, every: int, first: bool, most: int) -> list[int]:
    dumped: list[int] = []
    for step in range(13):
        if dump_due(step, every_steps=every, first_step=first, num_written=len(dumped), max_events=most):
            dumped.append(step)
    return dumped


def test_every_fourth_step_dumps_until_the_limit() -> None:
    assert steps(every=4, first=False, most=2) == [4, 8]


def test_the_first_step_dumps_when_asked() -> None:
    assert steps(every=4, first=True, most=0) == [0, 4, 8, 12]


def test_a_distance_of_zero_means_every_step() -> None:
    assert steps(every=0, first=True, most=3) == [0, 1, 2]
