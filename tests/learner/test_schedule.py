"""Learning rates over optimizer steps."""

from __future__ import annotations

from typing import Any

import pytest

from learner.schedule import learning_rate
from learner.settings import ScheduleSettings


def rates(settings: ScheduleSettings, steps: range, peak: float = 1.0) -> list[float]:
    return [learning_rate(peak, step, settings) for step in steps]


def test_warm_up_is_linear_and_never_zero() -> None:
    settings = ScheduleSettings(kind="constant", warmup_steps=4)
    assert rates(settings, range(6)) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_linear_decay_reaches_the_floor_one_step_after_the_last() -> None:
    settings = ScheduleSettings(kind="linear", max_steps=4, min_lr=0.2)
    assert rates(settings, range(6)) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])


def test_cosine_is_half_way_in_the_middle_and_stays_at_its_floor() -> None:
    settings = ScheduleSettings(kind="cosine", max_steps=12, warmup_steps=2, min_lr=0.1)
    assert learning_rate(1.0, 2, settings) == 1.0
    assert learning_rate(1.0, 7, settings) == pytest.approx(0.55)
    third = ScheduleSettings(kind="cosine", max_steps=3)
    assert rates(third, range(3)) == pytest.approx([1.0, 0.75, 0.25]), "and linear nowhere else"
    assert rates(settings, range(12, 15)) == pytest.approx([0.1] * 3)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_a_warm_up_as_long_as_the_run_ends_at_the_peak(kind: Any) -> None:
    assert rates(ScheduleSettings(kind=kind, max_steps=2, warmup_steps=2), range(3)) == [0.5, 1.0, 1.0]


def test_a_floor_above_a_groups_peak_leaves_the_group_constant() -> None:
    settings = ScheduleSettings(kind="cosine", max_steps=10, min_lr=0.5)
    assert rates(settings, range(12), peak=0.1) == pytest.approx([0.1] * 12)


def test_a_negative_step_is_refused() -> None:
    with pytest.raises(ValueError, match="step must be >= 0"):
        learning_rate(1.0, -1, ScheduleSettings())
