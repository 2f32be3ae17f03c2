"""Steps that write a monitor dump."""

from __future__ import annotations

from protocol.config.rollout_matching import MonitorDumpConfig


def steps(*, every: int, first: bool, most: int) -> list[int]:
    config = MonitorDumpConfig(enabled=True, every_steps=every, max_events=most)
    dumped: list[int] = []
    for step in range(13):
        if config.due(step, len(dumped), logging_steps=1, logging_first_step=first):
            dumped.append(step)
    return dumped


def test_every_fourth_step_dumps_until_the_limit() -> None:
    assert steps(every=4, first=False, most=2) == [4, 8]


def test_the_first_step_dumps_when_asked() -> None:
    assert steps(every=4, first=True, most=0) == [0, 4, 8, 12]


def test_a_distance_of_zero_means_every_logged_step() -> None:
    assert steps(every=0, first=True, most=3) == [0, 1, 2]
