"""Which checkpoint a run resumes from, and what it forgets when it goes back to one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from actors.loop import LoopState
from deploy.checkpoints import (
    CheckpointKeeper,
    ResumePoint,
    begin_run,
    complete_checkpoints,
    resume_path,
    rewind,
)
from deploy.ledger import read_ledger
from learner.checkpoint import Checkpoint
from protocol.config import RunConfig, config_from_mapping
from protocol.errors import ConfigError


class FolderLearner:
    """Writes checkpoints with nothing in them but what the driver remembers."""

    def save_checkpoint(self, path: Path, extra: dict[str, Any]) -> None:
        with Checkpoint.writing(path, 1, 2, extra):
            pass


def config(folder: Path, **training: Any) -> RunConfig:
    values = {
        "model": {"model": "m"},
        "custom": {
            "train_jsonl": "t.jsonl",
            "emit_norm": "none",
            "json_format": "standard",
            "extra": {"rollout_matching": {"vllm": {"max_model_len": 4096}}},
        },
        "training": {"output_dir": str(folder), "run_name": "r", "effective_batch_size": 10, **training},
    }
    return config_from_mapping(values, source="test")


def state(step: int, *f1: float) -> LoopState:
    """Evaluated after each of the steps up to `step`."""
    evaluations = [(number, {"eval_rollout_f1": value}) for number, value in enumerate(f1, start=1)]
    return LoopState(step=step, evaluations=evaluations)


def keeper(folder: Path, **training: Any) -> CheckpointKeeper:
    return CheckpointKeeper(config(folder, **training), FolderLearner(), num_records=100)


def names(folder: Path) -> list[str]:
    return [path.name for path in complete_checkpoints(folder / "r")]


def test_auto_resumes_from_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    saves = keeper(tmp_path)
    assert resume_path(config(tmp_path, resume="auto")) is None
    for step in (9, 10):
        saves.snapshot(state(step), position=0)()
    (tmp_path / "r" / "checkpoint-11").mkdir()  # a crash left it without trainer.json
    assert resume_path(config(tmp_path, resume="auto")) == tmp_path / "r" / "checkpoint-10"


def test_a_folder_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.resume: .*nowhere"):
        resume_path(config(tmp_path, resume=str(tmp_path / "nowhere")))


def test_a_fresh_start_moves_an_earlier_run_aside_and_a_resume_does_not(tmp_path: Path) -> None:
    run = tmp_path / "r"
    begin_run(config(tmp_path), 100)
    keeper(tmp_path).snapshot(state(0), position=0)()
    (run / "note").write_text("first")
    begin_run(config(tmp_path, resume="auto"), 100)
    assert (run / "note").exists()
    begin_run(config(tmp_path), 100)
    begin_run(config(tmp_path, resume="auto"), 100)

    assert not (run / "note").exists()
    assert (tmp_path / "r.1" / "note").read_text() == "first"
    assert (tmp_path / "r.2").exists()


def test_auto_says_where_it_starts_without_a_checkpoint(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = f"no checkpoint in {tmp_path / 'r'}, starting from model.model m"
    caplog.set_level("INFO")
    begin_run(config(tmp_path), 100)
    assert said not in caplog.messages
    begin_run(config(tmp_path, resume="auto"), 100)
    assert said in caplog.messages


def train_to(folder: Path, last_step: int) -> None:
    """A run of windows of one step and ten rollouts, with a checkpoint every second step."""
    run, saves = folder / "r", keeper(folder, save_steps=2)
    run.mkdir(parents=True, exist_ok=True)
    for step in range(1, last_step + 1):
        with (run / "metrics.jsonl").open("a") as metrics, (run / "ledger.jsonl").open("a") as ledger:
            metrics.write(json.dumps({"step": step}) + "\n")
            keys = [f"record={10 * step + i}/epoch=0/rollout=0" for i in range(10)]
            line = {"steps": [step, step], "version": step - 1, "rollout_versions": [step - 1] * 2, "keys": keys}
            ledger.write(json.dumps(line) + "\n")
        if saves.due(step):
            saves.snapshot(LoopState(step=step, trained=10 * step), position=10 * step)()


def steps(run: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_resume_cuts_metrics_and_ledger_back_to_its_checkpoint(tmp_path: Path) -> None:
    train_to(tmp_path, last_step=5)
    with (tmp_path / "r" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 6, "loss')  # the crash
    point = begin_run(config(tmp_path, resume="auto"), 100)

    assert point is not None
    assert (point.state.step, point.position) == (4, 40)
    assert steps(tmp_path / "r") == [1, 2, 3, 4]
    assert [window.last_step for window in read_ledger(tmp_path / "r")] == [1, 2, 3, 4]


def test_a_resume_finds_the_checkpoint_that_a_crash_left_without_its_name(tmp_path: Path) -> None:
    train_to(tmp_path, last_step=5)
    newest = tmp_path / "r" / "checkpoint-4"
    newest.rename(newest.with_name(".checkpoint-4.replaced"))
    point = begin_run(config(tmp_path, resume="auto"), 100)
    assert point is not None
    assert (point.path, point.state.step) == (newest, 4)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]


@pytest.mark.parametrize("named", ["auto", "runs/r/checkpoint-4"])
def test_a_run_below_the_working_directory_resumes_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    train_to(tmp_path / "runs", 4)
    monkeypatch.chdir(tmp_path)
    point = begin_run(config(Path("runs"), resume=named), 100)
    assert point is not None
    assert point.path == tmp_path / "runs" / "r" / "checkpoint-4"
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["r"]
    assert not (tmp_path / "runs" / "r" / "resumed_from").exists(), "it came from no other run"
    assert steps(tmp_path / "runs" / "r")[-1] == 4


def test_going_back_behind_a_later_checkpoint_takes_its_name_from_it(tmp_path: Path) -> None:
    train_to(tmp_path, last_step=5)
    begin_run(config(tmp_path, resume=str(tmp_path / "r" / "checkpoint-2")), 100)

    assert names(tmp_path) == ["checkpoint-2"]
    assert (tmp_path / "r" / "checkpoint-4.abandoned").is_dir()
    assert steps(tmp_path / "r") == [1, 2]


def test_a_run_from_another_runs_checkpoint_begins_with_a_copy_of_its_history(tmp_path: Path) -> None:
    train_to(tmp_path, last_step=5)
    (tmp_path / "other").mkdir()
    begin_run(config(tmp_path, run_name="other", resume=str(tmp_path / "r" / "checkpoint-4")), 100)

    assert steps(tmp_path / "other") == [1, 2, 3, 4]
    assert steps(tmp_path / "r") == [1, 2, 3, 4, 5]
    assert (tmp_path / "other.1").exists(), "what had the name before"


def test_a_run_from_another_runs_checkpoint_has_the_answers_before_it(tmp_path: Path) -> None:
    train_to(tmp_path, last_step=5)
    answers = [f'{{"step": {step}, "completion": "ä"}}\n' for step in (0, 2, 4, 5)]
    (tmp_path / "r" / "evaluations.jsonl").write_text("".join(answers) + '{"step": 0', encoding="utf-8")
    begin_run(config(tmp_path, run_name="other", resume=str(tmp_path / "r" / "checkpoint-4")), 100)
    copied = tmp_path / "other" / "evaluations.jsonl"
    assert copied.read_text(encoding="utf-8") == "".join(answers[:3])

    copied.write_text("".join([*answers[:3], '{"step": 6}\n']), encoding="utf-8")
    begin_run(config(tmp_path, run_name="other", resume="auto"), 100)
    assert copied.read_text(encoding="utf-8") == "".join([*answers[:3], '{"step": 6}\n']), "as in any resume"


def test_without_a_checkpoint_going_back_forgets_everything(tmp_path: Path) -> None:
    train_to(tmp_path, last_step=3)
    rewind(tmp_path / "r", None)
    assert names(tmp_path) == []
    assert (tmp_path / "r" / "checkpoint-2.abandoned").is_dir()
    assert steps(tmp_path / "r") == []
    assert read_ledger(tmp_path / "r") == []


def test_a_ledger_that_lost_a_line_is_refused_by_name(tmp_path: Path) -> None:
    train_to(tmp_path, last_step=4)
    ledger = tmp_path / "r" / "ledger.jsonl"
    ledger.write_text("".join(ledger.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(ConfigError, match=r"training\.resume: .*ledger\.jsonl holds \d+ bytes, and \d+ when"):
        begin_run(config(tmp_path, resume="auto"), 100)


def test_a_ledger_that_holds_a_rollout_twice_is_refused_at_a_resume_and_by_a_run_that_goes_back(tmp_path: Path) -> None:
    train_to(tmp_path, last_step=4)
    ledger = tmp_path / "r" / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace("record=11/", "record=10/"))
    with pytest.raises(ConfigError, match="1 rollouts were trained more than once, the first is record=10/"):
        begin_run(config(tmp_path, resume="auto"), 100)
    with pytest.raises(ConfigError, match="1 rollouts were trained more than once, the first is record=10/"):
        rewind(tmp_path / "r", ResumePoint.read(tmp_path / "r" / "checkpoint-4"))


def test_a_checkpoint_that_was_just_taken_is_not_written_again(tmp_path: Path) -> None:
    train_to(tmp_path, last_step=2)
    saves = keeper(tmp_path)
    saves.snapshot(state(2), position=0)()
    before = (tmp_path / "r" / "checkpoint-2").stat().st_ino
    saves.snapshot(state(2), position=0)()
    assert (tmp_path / "r" / "checkpoint-2").stat().st_ino == before


def test_auto_goes_back_to_where_a_run_came_from_until_it_has_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    train_to(tmp_path, last_step=4)
    origin = tmp_path / "r" / "checkpoint-4"
    begin_run(config(tmp_path, run_name="next", resume=str(origin)), 100)
    again = config(tmp_path, run_name="next", resume="auto")
    for _ in range(2):
        point = begin_run(again, 100)
        assert point is not None
        assert point.path == origin.resolve()

    own = CheckpointKeeper(again, FolderLearner(), 100, last_step=4).snapshot(state(8), position=0)()
    assert resume_path(again) == own.resolve()
    for path in (own, origin):
        path.rename(path.with_name("elsewhere"))
    with pytest.raises(ConfigError, match=r"^training\.resume: auto, and .*checkpoint-4, which .* is gone"):
        begin_run(again, 100)


@pytest.mark.parametrize("dies_at", range(3))
def test_a_start_from_another_runs_checkpoint_that_dies_is_taken_up_by_auto(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    train_to(tmp_path, last_step=5)
    (tmp_path / "r" / "events.jsonl").write_text('{"kind": "publish"}\n')
    origin, files = tmp_path / "r" / "checkpoint-4", itertools.count()

    def copy(source: Path, target: Path) -> None:
        text = source.read_text()
        if next(files) == dies_at:
            target.write_text(text[: len(text) // 2])
            raise OSError(28, "No space left on device")
        target.write_text(text)

    monkeypatch.setattr("shutil.copy", copy)
    with pytest.raises(OSError, match="No space"):
        begin_run(config(tmp_path, run_name="next", resume=str(origin)), 100)
    point = begin_run(config(tmp_path, run_name="next", resume="auto"), 100)

    assert point is not None
    assert point.path == origin
    assert steps(tmp_path / "next") == [window.last_step for window in read_ledger(tmp_path / "next")] == [1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["next", "r"], "nothing was moved aside"


def test_what_happened_since_a_run_came_from_another_stays_when_auto_goes_back_there(tmp_path: Path) -> None:
    train_to(tmp_path, last_step=4)
    (tmp_path / "r" / "events.jsonl").write_text('{"kind": "publish"}\n')
    begin_run(config(tmp_path, run_name="next", resume=str(tmp_path / "r" / "checkpoint-4")), 100)
    with (tmp_path / "next" / "events.jsonl").open("a") as events:
        events.write('{"kind": "publish"}\n{"kind": "end"}\n')
    begin_run(config(tmp_path, run_name="next", resume="auto"), 100)
    assert (tmp_path / "next" / "events.jsonl").read_text() == '{"kind": "end"}\n'


def test_a_resumed_run_saves_at_the_steps_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    saves = CheckpointKeeper(config(tmp_path, save_steps=4), FolderLearner(), num_records=100, last_step=6)
    assert [step for step in (7, 8, 9) if saves.due(step)] == [8, 9]


def test_the_best_checkpoint_is_one_that_exists(tmp_path: Path) -> None:
    saves = keeper(tmp_path)
    evaluations = [(1, {"eval_rollout_f1": 0.9}), (2, {"eval_rollout_f1": 0.5})]
    saves.snapshot(LoopState(step=2, evaluations=evaluations), position=0)()
    assert json.loads((tmp_path / "r" / "best.json").read_text())["checkpoint"] == "checkpoint-2"
    assert ResumePoint.read(tmp_path / "r" / "checkpoint-2").state.evaluations == evaluations


@pytest.mark.parametrize(
    ("changes", "records", "name"),
    [
        ({"effective_batch_size": 5}, 100, "training.effective_batch_size: is 5, and was 10"),
        ({"seed": 7}, 100, "training.seed: is 7"),
        ({}, 99, "custom.train_jsonl: is a file of 99 records, and was a file of 100 records"),
    ],
)
def test_a_resume_that_would_ask_for_other_records_is_refused_and_changes_nothing(
    tmp_path: Path, changes: dict[str, Any], records: int, name: str
) -> None:
    train_to(tmp_path, last_step=5)
    before = sorted(path.name for path in (tmp_path / "r").iterdir())
    with pytest.raises(ConfigError, match=f"^{name}"):
        begin_run(config(tmp_path, resume=str(tmp_path / "r" / "checkpoint-2"), **changes), records)
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == before


@pytest.mark.parametrize(
    ("section", "changes", "name"),
    [
        ("model", {"torch_dtype": "float32"}, "model.torch_dtype: is float32, and was bfloat16"),
        ("tuner", {"train_type": "lora"}, "tuner.train_type: is lora, and was full"),
        ("deepspeed", {"config": "zero1"}, r"training.resume: .* with ZeRO stage 2, this run has 1 with stage 1"),
        (
            "deepspeed",
            {"config": {"bf16": {"enabled": False}, "zero_optimization": {"stage": 2}}},
            "deepspeed.config: is one that computes in float32, and was one that computes in bfloat16",
        ),
    ],
)
@pytest.mark.parametrize("run_name", ["r", "other"])
def test_a_resume_that_could_not_take_the_state_over_is_refused_and_changes_nothing(
    tmp_path: Path, section: str, changes: dict[str, Any], name: str, run_name: str
) -> None:
    train_to(tmp_path, last_step=5)
    (tmp_path / "other").mkdir()
    base = config(tmp_path, run_name=run_name, resume=str(tmp_path / "r" / "checkpoint-2"))
    changed = base.model_copy(update={section: getattr(base, section).model_copy(update=changes)})
    before = {path: path.stat().st_size for path in tmp_path.rglob("*")}
    with pytest.raises(ConfigError, match=f"^{name}"):
        begin_run(changed, 100)
    assert {path: path.stat().st_size for path in tmp_path.rglob("*")} == before


def test_another_number_of_ranks_is_refused_at_stage_3_only_and_changes_nothing(tmp_path: Path) -> None:
    train_to(tmp_path, last_step=5)
    run = tmp_path / "r"
    base = config(tmp_path, resume=str(run / "checkpoint-2"))
    base = base.model_copy(update={"cluster": base.cluster.model_copy(update={"num_learners": 2})})
    meta = run / "checkpoint-2" / "trainer.json"
    saved = meta.read_text()
    meta.write_text(saved.replace('"zero_stage": 2', '"zero_stage": 3'))
    with pytest.raises(ConfigError, match=r"^training.resume: .* written by 1 ranks .* this run has 2 with stage 3"):
        begin_run(base.model_copy(update={"deepspeed": base.deepspeed.model_copy(update={"config": "zero3"})}), 100)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    meta.write_text(saved)
    assert begin_run(base, 100) is not None


@pytest.mark.parametrize("moved", ["subfolder", "link"])
def test_a_checkpoint_without_its_runs_files_beside_it_is_refused_and_changes_nothing(
    tmp_path: Path, moved: str
) -> None:
    train_to(tmp_path, last_step=4)
    place = tmp_path / "r" / "keep" if moved == "subfolder" else tmp_path / "big"
    place.mkdir()
    (tmp_path / "r" / "checkpoint-2").rename(place / "checkpoint-2")
    if moved == "link":
        (tmp_path / "r" / "checkpoint-2").symlink_to(place / "checkpoint-2")
    named = (tmp_path / "r" if moved == "link" else place) / "checkpoint-2"
    with pytest.raises(ConfigError, match=r"holds 0 bytes"):
        begin_run(config(tmp_path, resume=str(named)), 100)
    assert names(tmp_path)[-1] == "checkpoint-4"
    assert not (tmp_path / "r.1").exists()


def test_a_checkpoint_that_the_run_left_cannot_be_taken_up_again_once_it_went_on(tmp_path: Path) -> None:
    train_to(tmp_path, last_step=4)
    begin_run(config(tmp_path, resume=str(tmp_path / "r" / "checkpoint-2")), 100)
    abandoned = tmp_path / "r" / "checkpoint-4.abandoned"
    with pytest.raises(ConfigError, match=r"^training\.resume: "):
        begin_run(config(tmp_path, resume=str(abandoned)), 100)
    (abandoned.with_name("checkpoint-4")).mkdir()
    (abandoned.with_name("checkpoint-4") / "trainer.json").write_text((abandoned / "trainer.json").read_text())
    begin_run(config(tmp_path, resume=str(tmp_path / "r" / "checkpoint-2")), 100)
    assert abandoned.exists(), "the first one that was left"
    assert abandoned.with_name("checkpoint-4.abandoned.1").exists()
