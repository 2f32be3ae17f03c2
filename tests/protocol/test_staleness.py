"""The admission formula, its bound under random schedules, and the check at the learner's door."""

from __future__ import annotations

import random

import pytest

from protocol.contracts import RequestKey
from protocol.errors import ContractError
from protocol.segments import SegmentMeta, SegmentStats
from protocol.staleness import admissible, check_fresh


def meta(first_version: int, last_version: int | None = None) -> SegmentMeta:
    return SegmentMeta(
        key=RequestKey(17),
        length=10,
        num_bytes=40,
        first_version=first_version,
        last_version=first_version if last_version is None else last_version,
        stats=SegmentStats(),
    )


def simulate(rng: random.Random, *, batch_size: int, max_staleness: int, windows: int) -> list[int]:
    """Ages (version when trained minus version when begun) of every trained segment of one random schedule.

    Requests are answered in any order, some are given up and replaced; windows are trained in request order.
    """
    running: dict[int, int] = {}  # request number → version at its admission
    finished: dict[int, int] = {}
    version = accepted = number = 0
    ages: list[int] = []
    while version < windows:
        admitted = admissible(
            version=version,
            max_staleness=max_staleness,
            batch_size=batch_size,
            accepted=accepted,
            running=len(running),
        )
        for _ in range(rng.randint(0, admitted) if running else admitted):
            running[number] = version
            number += 1
        if running and rng.random() < 0.8:
            answered = rng.choice(list(running))
            begun = running.pop(answered)
            if rng.random() < 0.9:
                finished[answered] = begun
                accepted += 1
        oldest_running = min(running, default=number)
        takable = sorted(answered for answered in finished if answered < oldest_running)
        if len(takable) >= batch_size:
            assert max_staleness > 0 or not running, "on-policy: nothing is in flight at a publish"
            ages += [version - finished.pop(answered) for answered in takable[:batch_size]]
            version += 1
    return ages


def test_no_schedule_trains_a_segment_older_than_max_staleness() -> None:
    """The bound proved in `admissible`, over 3,000 random schedules; it is reached, so it is no slack."""
    rng = random.Random(5)
    oldest = {staleness: 0 for staleness in range(4)}
    for _ in range(3000):
        staleness = rng.randrange(4)
        ages = simulate(rng, batch_size=rng.randint(1, 5), max_staleness=staleness, windows=6)
        assert min(ages) >= 0
        assert max(ages) <= staleness
        oldest[staleness] = max(oldest[staleness], *ages)
    assert oldest == {staleness: staleness for staleness in range(4)}


def test_zero_staleness_admits_exactly_one_window() -> None:
    assert admissible(version=0, max_staleness=0, batch_size=32, accepted=0, running=0) == 32
    assert admissible(version=0, max_staleness=0, batch_size=32, accepted=12, running=20) == 0
    assert admissible(version=1, max_staleness=0, batch_size=32, accepted=32, running=0) == 32


def test_one_version_of_staleness_admits_the_next_window_too() -> None:
    assert admissible(version=3, max_staleness=1, batch_size=32, accepted=96, running=40) == 24


def test_admission_is_never_negative() -> None:
    """A resumed run may hold more accepted segments than its smaller batch size admits."""
    assert admissible(version=0, max_staleness=0, batch_size=8, accepted=32, running=0) == 0


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"version": -1}, {"max_staleness": -1}, {"running": -1}])
def test_counts_that_cannot_be_are_refused(wrong: dict[str, int]) -> None:
    counts = {"version": 0, "max_staleness": 0, "batch_size": 1, "accepted": 0, "running": 0} | wrong
    with pytest.raises(ValueError, match="batch_size must be > 0 and counts >= 0"):
        admissible(**counts)


@pytest.mark.parametrize(("first", "last"), [(4, 4), (4, 5), (5, 5), (3, 5)])
def test_a_segment_within_the_bound_is_fresh(first: int, last: int) -> None:
    check_fresh(meta(first, last), version=5, max_staleness=2)


def test_a_segment_that_is_too_old_is_refused_with_all_four_numbers() -> None:
    with pytest.raises(ContractError) as refused:
        check_fresh(meta(2, 4), version=5, max_staleness=2)
    text = str(refused.value)
    assert "record=17/epoch=0/rollout=0: segment is too old" in text
    assert all(number in text for number in ("first_version=2", "last_version=4", "version=5", "max_staleness=2"))


@pytest.mark.parametrize(("first", "last"), [(5, 6), (5, 4)])
def test_versions_that_cannot_be_are_refused(first: int, last: int) -> None:
    with pytest.raises(ContractError, match="versions that cannot be"):
        check_fresh(meta(first, last), version=5, max_staleness=2)
