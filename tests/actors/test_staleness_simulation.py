"""The staleness bound, exactly-once and the buffer's bounds over random schedules of actors, crashes and publishes."""

from __future__ import annotations

from tests.actors.staleness_simulation import check_schedule


def test_no_schedule_breaks_the_staleness_bound_or_loses_a_request() -> None:
    worst = {check_schedule(seed) for seed in range(400)}
    assert worst >= {0, 1, 2, 3}, "schedules that never reach a bound could not break it"
