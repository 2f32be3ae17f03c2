"""What a crash changes: nothing. One kill of the driver, one of a rank; `kill_suite` has the other moments."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.integration.conftest import descendants, read_lines
from tests.integration.demo_runs import Result, Run, settings, written
from tests.integration.kill_suite import KillPoint, killed, resumed, undisturbed

pytestmark = [pytest.mark.integration, pytest.mark.long]

NUM_STEPS, SAVE_STEPS = 6, 2


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return settings(tmp_path_factory.mktemp("scenes"), NUM_STEPS, SAVE_STEPS)


@pytest.fixture(scope="module")
def expected(overrides: list[str], tmp_path_factory: pytest.TempPathFactory) -> Result:
    return undisturbed(tmp_path_factory.mktemp("undisturbed"), overrides, NUM_STEPS)[0]


def test_a_run_whose_driver_was_killed_ends_where_one_that_was_not_ends(
    overrides: list[str], expected: Result, tmp_path: Path
) -> None:
    row = killed(tmp_path, overrides, KillPoint("train", 2, 0.2), expected, resume=False)
    assert row["same_so_far"]
    assert row["resumes_at"] == 4, "the third window was lost"
    assert all(resumed(tmp_path, overrides, expected).values())


def test_a_run_whose_learner_rank_was_killed_goes_back_to_its_checkpoint_and_ends_the_same(
    overrides: list[str], expected: Result, tmp_path: Path
) -> None:
    run = Run(tmp_path, overrides)
    trainings = (None for phase, _ in run.phases() if phase == "train")
    next(trainings), next(trainings)  # in the second window, behind the first checkpoint
    os.kill(training_rank(run), signal.SIGKILL)
    run.finish()
    run.seconds_until_gone()

    assert written(tmp_path / "run", NUM_STEPS) == expected
    (restart,) = (event for event in read_lines(tmp_path / "run" / "events.jsonl") if event["kind"] == "restart")
    assert restart["step"] == 2
    assert "learner rank 0 failed in train_step" in restart["cause"]
    restarts = [line.get("train/restarts", 0) for line in read_lines(tmp_path / "run" / "metrics.jsonl")]
    assert sum(restarts) == 1


def training_rank(run: Run, deadline_s: float = 60) -> int:
    """Process id of the rank while it is in a step."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        for pid, command in descendants(run.process.pid).items():
            if command.startswith("ray::LearnerRank.train_step"):
                return pid
        time.sleep(0.05)
    raise AssertionError(f"no rank in a step within {deadline_s} s")
