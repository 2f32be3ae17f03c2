"""Several optimizer steps in one metric record."""

from __future__ import annotations

from collections.abc import Mapping

from deploy.step_log import StepLog


def records(
    num_steps: int, *, every: int, first: bool = False, flush_at: int = 0
) -> list[tuple[int, dict[str, float]]]:
    """What a run of `num_steps` steps writes, each with 4 segments and a loss that is its number."""
    written: list[tuple[int, dict[str, float]]] = []

    def write(step: int, metrics: Mapping[str, float]) -> None:
        written.append((step, dict(metrics)))

    log = StepLog(write, every=every, first=first, last_step=num_steps)
    for step in range(1, num_steps + 1):
        log.add(step, {"rollout/segments": 4.0, "loss/total": float(step)})
        if step == flush_at:
            log.flush()
    return written


def test_counters_add_up_and_gauges_are_the_last_steps() -> None:
    assert records(6, every=3) == [
        (3, {"rollout/segments": 12.0, "loss/total": 3.0}),
        (6, {"rollout/segments": 12.0, "loss/total": 6.0}),
    ]


def test_a_window_that_is_trained_twice_counts_its_rollouts_once() -> None:
    written: list[Mapping[str, float]] = []
    log = StepLog(lambda _, metrics: written.append(metrics), every=4, first=False, last_step=4)
    for step in range(1, 5):
        counted = {"rollout/segments": 32.0, "rollout/actor_restarts": 1.0, "train/tokens": 10.0}
        log.add(step, counted | {"rollout/buffer_reuse": float(step % 2 == 0)})
    (record,) = written
    assert [record[name] for name in counted] == [64.0, 4.0, 40.0]


def test_a_window_across_two_records_is_counted_in_the_first_and_generation_adds_up() -> None:
    written: list[Mapping[str, float]] = []
    log = StepLog(lambda _, metrics: written.append(metrics), every=3, first=False, last_step=6)
    for step in range(6):
        reused = step % 2
        log.add(
            step + 1,
            {
                "rollout/gt_objects": 10.0,
                "rollout/buffer_reuse": float(reused),
                "time/rollout_generate_s": 0.0 if reused else 20.0,
            },
        )
    assert [record["rollout/gt_objects"] for record in written] == [20.0, 10.0]
    assert [record["time/rollout_generate_s"] for record in written] == [40.0, 20.0], "60 s for three windows"


def test_a_record_of_m_steps_alone_counts_no_rollouts_where_records_hold_several_steps() -> None:
    written: list[Mapping[str, float]] = []
    log = StepLog(lambda _, metrics: written.append(metrics), every=2, first=False, last_step=4)
    for step in range(4):
        log.add(step + 1, {"rollout/segments": 8.0, "rollout/buffer_reuse": float(step > 0), "loss/total": 1.0})
    assert [record.get("rollout/segments") for record in written] == [8.0, None]


def test_an_m_step_with_a_record_of_its_own_says_again_what_it_trains() -> None:
    written: list[Mapping[str, float]] = []
    log = StepLog(lambda _, metrics: written.append(metrics), every=1, first=False, last_step=2)
    for step in range(2):
        seconds = 0.0 if step else 20.0
        metrics = {"rollout/segments": 8.0, "rollout/buffer_reuse": float(step), "time/rollout_generate_s": seconds}
        log.add(step + 1, metrics)
    assert [record["rollout/segments"] for record in written] == [8.0, 8.0]
    assert [record["time/rollout_generate_s"] for record in written] == [20.0, 0.0]


def test_every_step_is_a_record_where_nothing_else_is_asked_for() -> None:
    assert [step for step, _ in records(3, every=1)] == [1, 2, 3]


def test_the_first_and_the_last_step_are_written() -> None:
    assert [step for step, _ in records(5, every=3, first=True)] == [1, 3, 5]


def test_a_flush_leaves_nothing_out_and_nothing_twice() -> None:
    written = records(6, every=4, flush_at=2)
    assert [step for step, _ in written] == [2, 4, 6]
    assert sum(metrics["rollout/segments"] for _, metrics in written) == 24


def test_what_is_trained_again_is_not_counted_twice() -> None:
    written: list[float] = []
    log = StepLog(lambda _, metrics: written.append(metrics["rollout/segments"]), every=2, first=False, last_step=9)
    for step in (1, 1, 2):
        log.forget()
        log.add(step, {"rollout/segments": 4.0})
    assert written == [4.0]
