"""What a run leaves on disk."""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from deploy.tracking import RunTracker
from protocol.errors import ConfigError, ContractError


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_event_is_one_json_line_that_is_there_at_once(tmp_path: Path) -> None:
    with RunTracker(tmp_path / "run", report_to=("none",)) as tracker:
        tracker.log(1, {"rollout/f1": 0.5, "policy/version": 1})
        (line,) = lines(tmp_path / "run" / "metrics.jsonl")
    assert line.pop("time") > 0
    assert line == {"step": 1, "rollout/f1": 0.5, "policy/version": 1.0}


def test_an_unknown_name_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with RunTracker(tmp_path, report_to=("none",)) as tracker:
        with pytest.raises(ContractError, match="'rollout/f2' is not in the table"):
            tracker.log(1, {"rollout/f1": 0.5, "rollout/f2": 0.5})
        assert lines(tmp_path / "metrics.jsonl") == []


def test_numbers_that_are_not_finite_stay_visible_in_valid_json(tmp_path: Path) -> None:
    with RunTracker(tmp_path, report_to=("none",)) as tracker:
        tracker.log(1, {"loss/ce": float("nan"), "loss/coord": float("inf"), "loss/total": float("-inf")})
        (line,) = lines(tmp_path / "metrics.jsonl")
    assert [line[f"loss/{name}"] for name in ("ce", "coord", "total")] == ["NaN", "Infinity", "-Infinity"]


def test_a_resumed_run_goes_on_in_the_same_files(tmp_path: Path) -> None:
    for step in (1, 2):
        with RunTracker(tmp_path, report_to=("none",)) as tracker:
            tracker.log(step, {"rollout/f1": 0.5})
            tracker.event("publish", version=step, path=tmp_path)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2]
    assert [(line["kind"], line["version"]) for line in lines(tmp_path / "events.jsonl")] == [
        ("publish", 1),
        ("publish", 2),
    ]


def test_tensorboard_holds_the_same_numbers_under_the_same_names(tmp_path: Path) -> None:
    with RunTracker(tmp_path) as tracker:
        tracker.log(3, {"rollout/f1": 0.5, "loss/ce": 1.25})
    assert tensorboard_scalars(tmp_path / "tensorboard") == {(3, "rollout/f1"): 0.5, (3, "loss/ce"): 1.25}


def test_tensorboard_drops_the_steps_that_a_resumed_run_trains_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunTracker(tmp_path) as tracker:
        for step, loss in ((1, 3.0), (2, 2.0), (3, 1.0)):
            tracker.log(step, {"loss/ce": loss})
        tracker.rewind(1)
        tracker.log(2, {"loss/ce": 2.5})
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss/ce")
    assert [(event.step, event.value) for event in shown] == [(1, 3.0), (2, 2.5)]
    told = lines(tmp_path / "metrics.jsonl")
    assert [event.wall_time for event in shown] == [told[0]["time"], told[-1]["time"]]


def tensorboard_scalars(directory: Path) -> dict[tuple[int, str], float]:
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    (file,) = directory.iterdir()
    return {
        (event.step, value.tag): value.simple_value
        for event in LegacyEventFileLoader(str(file)).Load()
        for value in event.summary.value
    }


def test_wandb_without_the_package_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^training\.report_to: wandb is asked for .*pip install wandb"):
        RunTracker(tmp_path, report_to=("wandb",))


def test_wandb_gets_the_same_numbers_under_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    ids: list[str] = []

    class Run:
        def log(self, metrics: dict[str, float], step: int) -> None:
            told.append((step, metrics))

        def finish(self) -> None:
            told.append("finish")

    def init(*, id: str, dir: str, resume: str, **_: Any) -> Run:
        assert Path(dir).is_dir()
        assert resume == "allow"
        ids.append(id)
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))  # type: ignore[arg-type]
    for step in (3, 4):
        with RunTracker(tmp_path / "run", report_to=("wandb",), logging_dir=tmp_path / "logs" / "deep") as tracker:
            tracker.log(step, {"rollout/f1": 0.5})
    RunTracker(tmp_path / "another", report_to=("wandb",)).close()
    assert told == [(3, {"rollout/f1": 0.5}), "finish", (4, {"rollout/f1": 0.5}), "finish", "finish"]
    assert ids[0] == ids[1] != ids[2], "a run that goes on keeps its page"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_place_that_fails_costs_what_it_misses_and_not_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """TensorBoard writes in a thread of its own, and tells of its error at some later step."""
    with RunTracker(tmp_path / "run", logging_dir=tmp_path / "logs") as tracker:
        tracker.log(1, {"rollout/f1": 0.5})
        (tmp_path / "logs").rename(tmp_path / "gone")  # at once, whatever the thread is writing
        step, deadline = 1, time.monotonic() + 30
        while not tracker.take_counters()["dump/failed"] and time.monotonic() < deadline:
            step += 1
            tracker.log(step, {"rollout/f1": 0.5})
            time.sleep(0.05)
    assert "could not write step" in caplog.text
    assert len(lines(tmp_path / "run" / "metrics.jsonl")) == step


def test_the_writers_files_go_to_the_logging_directory(tmp_path: Path) -> None:
    with RunTracker(tmp_path / "run", logging_dir=tmp_path / "logs") as tracker:
        tracker.log(1, {"rollout/f1": 0.5})
    assert tensorboard_scalars(tmp_path / "logs" / "tensorboard") == {(1, "rollout/f1"): 0.5}


def test_the_summary_is_replaced_in_one_piece(tmp_path: Path) -> None:
    with RunTracker(tmp_path, report_to=("none",)) as tracker:
        tracker.write_summary({"f1_after": 0.5})
        path = tracker.write_summary({"f1_after": 0.75})
    assert json.loads(path.read_text()) == {"f1_after": 0.75}
    assert not list(tmp_path.glob("*.partial"))


def test_a_run_that_goes_on_has_not_ended(tmp_path: Path) -> None:
    with RunTracker(tmp_path, ["none"]) as tracker:
        tracker.write_summary({"f1_after": 0.6})
    with RunTracker(tmp_path, ["none"]):
        assert not (tmp_path / "summary.json").exists()


def test_closing_twice_is_fine(tmp_path: Path) -> None:
    tracker = RunTracker(tmp_path, report_to=("none",))
    tracker.close()
    tracker.close()
