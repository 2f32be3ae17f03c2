"""Health is progress: it is lost by silence, and the answer says what the run waits for."""

from __future__ import annotations

from deploy.health import Health


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_run_without_progress_is_unhealthy_and_says_what_it_waits_for() -> None:
    clock = Clock()
    health = Health(within_s=60, clock=clock)
    health.phase("train", "the learner's optimizer step")
    clock.now = 61.0
    health.phase("train", "the learner's optimizer step")  # the loop polls, nothing moved

    ok, sentence = health.healthz()
    assert not ok
    assert "no progress for 61 s (metrics.healthy_within_s is 60); train, waiting for the learner" in sentence
    assert "docs/runbook.md#no-progress" in sentence


def test_a_wait_that_gets_shorter_and_an_answer_are_progress() -> None:
    clock = Clock()
    health = Health(within_s=60, clock=clock)
    for clock.now in (50.0, 100.0, 150.0):
        assert health.phase("rollout", f"{clock.now} segments")
    assert health.healthz().ok
    clock.now = 205.0
    health.progress()
    clock.now = 260.0
    assert health.healthz() == (True, "last progress 55 s ago; rollout, waiting for 150.0 segments")


def test_a_run_is_ready_when_its_first_version_is_served() -> None:
    health = Health(within_s=60)
    health.phase("start", "engines and learner ranks")
    assert health.readyz() == (
        False,
        "not ready: the first version is not served yet; start, waiting for engines and learner ranks",
    )
    health.ready()
    assert health.readyz().ok
