"""Which checkpoints a run writes, keeps and resumes from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.loop import LoopState
from deploy.checkpoints import CheckpointKeeper, complete_checkpoints, prepare_run_folder, resume_path
from protocol.config import RunConfig, config_from_mapping
from protocol.errors import ConfigError


class FolderLearner:
    """Writes the two folders a checkpoint has, with nothing of value in them."""

    def save_checkpoint(self, path: Path, extra: dict[str, Any]) -> None:
        path.mkdir(parents=True)
        (path / "trainer.json").write_text(json.dumps(extra))

    def export_merged(self, path: Path) -> None:
        path.mkdir()


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


def state(step: int, f1: float | None = None) -> LoopState:
    evaluations = [] if f1 is None else [(step, {"eval_rollout_f1": f1})]
    return LoopState(step=step, evaluations=evaluations)


def keeper(folder: Path, **training: Any) -> CheckpointKeeper:
    return CheckpointKeeper(config(folder, **training), FolderLearner(), num_records=100)


def names(folder: Path) -> list[str]:
    return [path.name for path in complete_checkpoints(folder / "r")]


def test_saves_are_due_at_each_multiple_once(tmp_path: Path) -> None:
    saves = keeper(tmp_path, save_steps=4)
    due = []
    for step in range(0, 13, 3):
        if saves.due(step):
            due.append(step)
            saves.save(state(step), position=0)
    assert due == [6, 9, 12], "the first step at or after 4, 8 and 12"


def test_nothing_is_saved_before_the_delay(tmp_path: Path) -> None:
    saves = keeper(tmp_path, save_steps=2, save_delay_steps=7)
    assert [step for step in (2, 4, 6, 8) if saves.due(step)] == [8]


def test_an_epoch_of_delay_counts_in_steps(tmp_path: Path) -> None:
    saves = keeper(tmp_path, save_steps=2, save_delay_epochs=0.5)
    assert [step for step in (2, 4, 6) if saves.due(step)] == [6], "100 records by 10 are 10 steps an epoch"


def test_the_limit_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    saves = keeper(tmp_path, save_total_limit=2)
    for step, f1 in ((1, 0.5), (2, 0.9), (3, 0.7), (4, 0.6)):
        saves.save(state(step, f1), position=0)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    assert json.loads((tmp_path / "r" / "best.json").read_text()) == {
        "checkpoint": "checkpoint-2",
        "metric": "eval_rollout_f1",
        "value": 0.9,
    }


def test_a_smaller_value_can_be_the_better_one(tmp_path: Path) -> None:
    saves = keeper(tmp_path, greater_is_better=False)
    for step, f1 in ((1, 0.5), (2, 0.9)):
        saves.save(state(step, f1), position=0)
    assert json.loads((tmp_path / "r" / "best.json").read_text())["checkpoint"] == "checkpoint-1"


def test_auto_resumes_from_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    saves = keeper(tmp_path)
    assert resume_path(config(tmp_path, resume="auto")) is None
    for step in (9, 10):
        saves.save(state(step), position=0)
    (tmp_path / "r" / "checkpoint-11").mkdir()  # a crash left it without trainer.json
    assert resume_path(config(tmp_path, resume="auto")) == tmp_path / "r" / "checkpoint-10"


def test_a_folder_that_is_no_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.resume: .*nowhere"):
        resume_path(config(tmp_path, resume=str(tmp_path / "nowhere")))


def test_a_fresh_start_moves_an_earlier_run_aside_and_a_resume_does_not(tmp_path: Path) -> None:
    run = tmp_path / "r"
    prepare_run_folder(run, fresh=True)
    (run / "metrics.jsonl").write_text("first")
    prepare_run_folder(run, fresh=False)
    assert (run / "metrics.jsonl").exists()
    prepare_run_folder(run, fresh=True)
    prepare_run_folder(run, fresh=True)

    assert not (run / "metrics.jsonl").exists()
    assert (tmp_path / "r.1" / "metrics.jsonl").read_text() == "first"
    assert (tmp_path / "r.2").exists()
