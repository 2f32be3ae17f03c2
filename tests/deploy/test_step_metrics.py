"""The driver's own numbers about a step: where its time went, what rollouts and actors did."""

from __future__ import annotations

import pytest

from actors.outcome import Outcome
from actors.status import ActorStatus
from deploy.phase_clock import PhaseClock
from deploy.step_metrics import StepMetrics
from protocol.contracts import RequestKey
from protocol.segments import SegmentMeta, SegmentStats


class Run:
    """A clock that is moved by hand, and what hangs on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.clock = PhaseClock(lambda: self.now)
        self.metrics = StepMetrics(self.clock)

    def spend(self, phase: str, seconds: float) -> None:
        self.clock.enter(phase)
        self.now += seconds


@pytest.fixture
def run() -> Run:
    return Run()


def accepted(record: int) -> Outcome:
    meta = SegmentMeta(
        key=RequestKey(record),
        length=1,
        num_bytes=4,
        first_version=0,
        last_version=0,
        stats=SegmentStats(),
    )
    return Outcome(key=meta.key, meta=meta)


def status(name: str, *, state: str = "synced", restarts: int = 0) -> ActorStatus:
    return ActorStatus(
        name=name,
        state=state,
        version=0,
        num_owed=2,
        num_running=1,
        given_up=False,
        pid=1,
        restarts={"EngineError": restarts},
        idle_s=0.0,
    )


def test_a_steps_time_is_its_rollouts_training_and_publish(run: Run) -> None:
    for phase, seconds in (("rollout", 3.0), ("train", 2.0), ("sync", 1.0)):
        run.spend(phase, seconds)
    found = run.metrics.complete({"time/train_step_s": 2.0, "train/tokens": 100.0}, [])
    assert (found["time/step_s"], found["time/sync_s"]) == (6.0, 1.0)
    assert found["train/tokens_per_s"] == 50.0


def test_phases_that_did_not_run_are_absent_and_other_work_is_in_no_step(run: Run) -> None:
    run.spend("rollout", 3.0)
    run.metrics.complete({}, [])
    run.spend("evaluate", 4.0)
    evaluation = run.metrics.complete({"eval_rollout_f1": 0.5}, [])
    run.spend("save", 5.0)
    checkpoint = run.metrics.checkpoint()
    run.spend("train", 2.0)
    step = run.metrics.complete({"rollout/buffer_reuse": 1.0}, [])

    assert evaluation == {"eval_rollout_f1": 0.5, "time/evaluate_s": 4.0}
    assert checkpoint == {"time/checkpoint_s": 5.0}
    assert step["time/step_s"] == 2.0
    assert "time/sync_s" not in step


def test_time_before_the_first_phase_is_in_none_and_no_phase_is_taken_twice(run: Run) -> None:
    run.now += 3.0
    run.spend("train", 1.0)
    assert run.clock.totals() == run.clock.take() == {"train": 1.0}
    assert run.clock.take() == {}


def test_rollouts_are_counted_per_window_and_an_m_step_accepts_none(run: Run) -> None:
    run.spend("rollout", 4.0)
    for record in range(8):
        run.metrics.outcome(accepted(record))
    run.metrics.outcome(Outcome(key=RequestKey(9), failure="Oversize: too long"))
    run.metrics.outcome(Outcome(key=RequestKey(10), failure="ImageError: gone"))
    first = run.metrics.complete({"rollout/buffer_reuse": 0.0}, [])
    again = run.metrics.complete({"rollout/buffer_reuse": 1.0}, [])
    run.spend("rollout", 0.5)
    run.metrics.outcome(accepted(11))
    second = run.metrics.complete({"rollout/buffer_reuse": 0.0}, [])

    assert (first["rollout/rollouts_per_s"], first["rollout/oversize_dropped"]) == (2.0, 1.0)
    assert (second["rollout/rollouts_per_s"], second["rollout/oversize_dropped"]) == (2.0, 0.0)
    assert not {"rollout/rollouts_per_s", "rollout/oversize_dropped"} & set(again)


def test_restarts_are_those_since_the_last_event(run: Run) -> None:
    pool = [status("actor-0", restarts=1), status("actor-1", state="stale"), status("actor-2")]
    found = [run.metrics.complete({}, pool) for _ in range(2)]
    assert [each["rollout/actor_restarts"] for each in found] == [1, 0]
    assert (found[0]["rollout/actors_ready"], found[0]["rollout/running"]) == (2, 6)
