"""When a learner fails: how often, and from where, a run goes on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.loop import LoopState
from deploy import launch
from deploy.checkpoints import CheckpointKeeper, ResumePoint
from deploy.demo.scenes import write_scenes
from deploy.signals import StopSignals
from protocol.config import RunConfig
from protocol.errors import ConfigError, EngineError, ImageError, LearnerError, RecordError
from tests.deploy.test_checkpoints import FolderLearner, config, state, train_to


class Runs:
    """In place of engines and learner: each attempt does what its turn in `script` says."""

    def __init__(self, run_config: RunConfig, script: list[Any], saves: bool) -> None:
        self._config = run_config
        self._saves = saves
        self.stopped = False
        self._script = iter(script)
        self.started_at: list[int] = []
        self.told: list[tuple[int, str]] = []

    @contextlib.contextmanager
    def service(
        self, config: RunConfig, data: Any, point: ResumePoint | None, observer: Any
    ) -> Iterator[tuple[Any, Any]]:
        state = point.state if point else LoopState()
        self.started_at.append(state.step)
        controller = SimpleNamespace(run=lambda: self._run(state), stop=self.stopped, state=state)
        yield controller, SimpleNamespace(num_restarts=len(self.started_at))

    def _run(self, state: LoopState) -> LoopState:
        state.step += 2
        if self._saves:
            CheckpointKeeper(self._config, FolderLearner(), 100).snapshot(LoopState(step=state.step), position=0)()
        state.step += 1
        outcome = next(self._script)
        if isinstance(outcome, Exception):
            raise outcome
        return state

    def restarted(self, point: ResumePoint | None, cause: Exception) -> None:
        self.told.append((point.state.step if point else 0, str(cause)))


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*script: Any, limit: int = 3, saves: bool = True) -> tuple[Runs, Any]:
        run_config = config(tmp_path).model_copy(
            update={"cluster": config(tmp_path).cluster.model_copy(update={"max_learner_restarts": limit})}
        )
        run_config.run_dir.mkdir(parents=True)
        runs = Runs(run_config, list(script), saves)
        monkeypatch.setattr(launch, "_service", runs.service)
        # The runs below train no window, so that there is no ledger to look at.
        monkeypatch.setattr(launch, "rewind", lambda run_dir, point: None)
        return runs, lambda point=None: launch._run(run_config, SimpleNamespace(), point, runs, StopSignals())  # type: ignore

    return run


def test_a_run_whose_learner_fails_goes_on_from_its_last_checkpoint(go: Any) -> None:
    runs, run = go(LearnerError("rank 1 died"), LearnerError("rank 0 died"), "done")
    result = run()
    assert runs.started_at == [0, 2, 4]
    assert runs.told == [(2, "rank 1 died"), (4, "rank 0 died")]
    assert (result.state.step, result.actor_restarts, result.learner_restarts) == (7, 3, 2)


def test_a_run_from_another_runs_checkpoint_goes_back_there_until_it_has_one_of_its_own(
    go: Any, tmp_path: Path
) -> None:
    path = CheckpointKeeper(config(tmp_path, run_name="other"), FolderLearner(), 100).snapshot(state(4), position=0)()
    runs, run = go(LearnerError("rank 1 died"), LearnerError("rank 0 died"), limit=1, saves=False)
    with pytest.raises(LearnerError, match=r"failed 2 times since the checkpoint of step 4 .*, last at step 7: rank 0"):
        run(ResumePoint.read(path))
    assert runs.started_at == [4, 4]


def test_a_learner_that_fails_while_the_run_stops_ends_it(go: Any) -> None:
    runs, run = go(LearnerError("rank 1 died"))
    runs.stopped = True
    with pytest.raises(LearnerError, match=r"^rank 1 died$"):
        run()
    assert (runs.started_at, runs.told) == ([0], [])


def test_the_limit_ends_the_run_with_the_cause(go: Any) -> None:
    causes = [LearnerError(f"failure {number}") for number in range(3)]
    _, run = go(*causes, limit=2, saves=False)
    with pytest.raises(
        LearnerError, match=r"failed 3 times since step 0 \(cluster\.max_learner_restarts is 2\).*failure 2"
    ) as raised:
        run()
    assert raised.value.__cause__ is causes[2]


def test_a_failure_after_a_new_checkpoint_is_the_first_again(go: Any) -> None:
    runs, run = go(*[LearnerError(f"day {number}") for number in range(5)], "done", limit=1)
    result = run()
    assert runs.started_at == [0, 2, 4, 6, 8, 10]
    assert result.learner_restarts == 5


def test_without_restarts_the_first_failure_ends_the_run_also_after_a_new_checkpoint(go: Any) -> None:
    _, run = go(LearnerError("gone"), limit=0)
    with pytest.raises(LearnerError, match=r"failed 1 times since the checkpoint of step 2 \(.* is 0\), last"):
        run()


@pytest.mark.parametrize("error", [ImageError("gone"), EngineError("no engine"), ValueError("a bug")])
def test_what_is_no_failure_of_the_learner_is_not_tried_again(go: Any, error: Exception) -> None:
    runs, run = go(error)
    with pytest.raises(type(error)):
        run()
    assert runs.started_at == [0]


def test_an_interval_is_a_number_of_steps_or_an_epoch(tmp_path: Path) -> None:
    run_config = config(tmp_path, max_steps=100)
    assert run_config.interval("steps", 7, num_records=105) == 7
    assert run_config.interval("steps", None, num_records=105) == run_config.interval("no", 7, num_records=105) == 0
    assert run_config.interval("epoch", None, num_records=105) == Fraction(21, 2), "105 records by 10"


def test_validation_records_are_drawn_again_and_again_where_asked(tmp_path: Path) -> None:
    write_scenes(tmp_path, "val", 4, seed=1)
    base = config(tmp_path)
    custom = {"val_jsonl": str(tmp_path / "val.jsonl"), "val_sample_limit": 9, "val_sample_with_replacement": True}
    drawn = launch.validation_records(base.model_copy(update={"custom": base.custom.model_copy(update=custom)}))
    assert len(drawn) == 9
    assert {line.index for line in drawn} <= {0, 1, 2, 3}
    assert [line.parse() for line in drawn] == [line.parse() for line in drawn], "they are read again each time"


@pytest.mark.parametrize("drawn", [False, True])
def test_a_validation_line_that_the_check_has_not_read_is_parsed_before_anything_starts(
    drawn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_scenes(tmp_path, "val", 4, seed=1)
    path = tmp_path / "val.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:3]) + "{}\n")
    base = config(tmp_path)
    custom = {"val_jsonl": str(path), "val_sample_limit": 40 if drawn else None, "val_sample_with_replacement": drawn}
    run_config = base.model_copy(update={"custom": base.custom.model_copy(update=custom)})
    monkeypatch.setattr("deploy.inputs.MAX_LINES", 3)
    with pytest.raises(RecordError, match=r"val\.jsonl:4: width is missing"):
        launch.validation_records(run_config)
    monkeypatch.setattr("deploy.inputs.MAX_LINES", 4)
    assert len(launch.validation_records(run_config)) == (40 if drawn else 4), "the check has refused it"


class Began(Exception):
    """The run's folder would be made ready, and Ray started."""


@pytest.fixture
def ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that ended at step 6, with the file of 100 records that it trained on."""

    def began(*_: object) -> None:
        raise Began

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch, "require_clean", lambda config: None)
    monkeypatch.setattr(launch, "begin_run", began)
    Path("t.jsonl").write_text("{}\n" * 100)
    train_to(tmp_path, last_step=6)
    (tmp_path / "r" / "summary.json").write_text(json.dumps({"steps": 6, "wall_s": 78.0, "run": "/where/it/was"}))
    return tmp_path


@pytest.mark.parametrize(
    ("training", "words"),
    [
        ({"max_steps": 6}, "is at step 6 of 6: nothing is left to train; raise training.max_steps to go on"),
        ({"max_steps": 4}, "is at step 6 of 4: nothing"),
        ({"num_train_epochs": 0.6}, "is at step 6 of 6: nothing is left to train; raise training.num_train_epochs"),
    ],
)
def test_a_run_that_has_ended_is_resumed_by_its_summary_alone(
    ended: Path, caplog: pytest.LogCaptureFixture, training: dict[str, Any], words: str
) -> None:
    caplog.set_level("INFO")
    before = {path: path.stat().st_mtime_ns for path in (ended / "r").rglob("*")}
    summary = launch.train(config(ended, resume="auto", **training))
    assert summary == {"steps": 6, "wall_s": 78.0, "run": str(ended / "r")}, "the folder may have moved"
    assert any(words in message for message in caplog.messages), caplog.messages
    assert {path: path.stat().st_mtime_ns for path in (ended / "r").rglob("*")} == before


@pytest.mark.parametrize(
    "training",
    [
        {"resume": "auto", "max_steps": 7},
        {"resume": "r/checkpoint-4", "max_steps": 4},
        {"resume": "r/checkpoint-6", "max_steps": 6, "run_name": "other"},
        {"resume": "never", "max_steps": 6},
    ],
)
def test_a_run_that_has_something_left_to_do_begins(ended: Path, training: dict[str, Any]) -> None:
    with pytest.raises(Began):
        launch.train(config(ended, **training))


def test_a_run_without_its_last_evaluation_or_its_summary_begins(ended: Path) -> None:
    base = config(ended, resume="auto", max_steps=6)
    write_scenes(ended, "val", 1, seed=1)
    with pytest.raises(Began):
        launch.train(base.model_copy(update={"custom": base.custom.model_copy(update={"val_jsonl": "val.jsonl"})}))
    summary = ended / "r" / "summary.json"
    summary.write_text(json.dumps({"steps": 4}))  # of an end before the run went on
    with pytest.raises(Began):
        launch.train(base)
    summary.unlink()
    with pytest.raises(Began):
        launch.train(base)


@pytest.mark.parametrize("evaluated_at", [4, 6])
def test_a_run_has_ended_once_the_evaluation_of_its_last_step_is_remembered(ended: Path, evaluated_at: int) -> None:
    write_scenes(ended, "val", 1, seed=1)
    base = config(ended, resume="auto", max_steps=6)
    evaluations = [(step, {"eval_rollout_f1": 0.5}) for step in (0, evaluated_at)]
    at_the_end = LoopState(step=6, trained=60, evaluations=evaluations)
    CheckpointKeeper(base, FolderLearner(), 100, last_step=6).snapshot(at_the_end, position=60)()
    with contextlib.nullcontext() if evaluated_at == 6 else pytest.raises(Began):
        custom = base.custom.model_copy(update={"val_jsonl": "val.jsonl"})
        assert launch.train(base.model_copy(update={"custom": custom}))["steps"] == 6


def test_a_summary_compares_the_first_evaluation_with_the_last(tmp_path: Path) -> None:
    ended = LoopState(step=6, version=3, accepted=64, trained=60, quarantined=2, versions_used={2, 0})
    ended.evaluations = [(step, {"eval_rollout_f1": f1}) for step, f1 in ((0, 0.5), (4, 0.9), (6, 0.7))]
    summary = launch.summarise(config(tmp_path), launch.RunResult(ended, 5, 1), wall_s=12.34)
    assert (summary["f1_before"], summary["f1_after"]) == (0.5, 0.7)
    assert [summary[name]["eval_rollout_f1"] for name in ("before", "after")] == [0.5, 0.7]
    counted = ("steps", "rollouts", "policy_versions", "versions_used", "quarantined", "restarts", "learner_restarts")
    assert [summary[name] for name in counted] == [6, 64, 3, [0, 2], 2, 5, 1]
    nothing = launch.summarise(config(tmp_path), launch.RunResult(LoopState(), 0, 0), wall_s=1.0)
    assert (nothing["f1_before"], nothing["f1_after"], nothing["before"], nothing["after"]) == (None, None, {}, {})


def test_a_run_that_has_ended_is_refused_with_other_settings_too(ended: Path) -> None:
    with pytest.raises(ConfigError, match=r"^training\.seed: is 7"):
        launch.train(config(ended, resume="auto", max_steps=6, seed=7))
