"""Which checkpoints a run writes and keeps."""

from __future__ import annotations

import json
from pathlib import Path

from actors.loop import LoopState
from deploy.checkpoints import ResumePoint
from protocol.metrics import RolloutTotals
from protocol.segments import SegmentStats
from tests.deploy.test_checkpoints import keeper, names, state


def test_saves_are_due_at_each_multiple_once(tmp_path: Path) -> None:
    saves = keeper(tmp_path, save_steps=4)
    due = []
    for step in range(0, 13, 3):
        if saves.due(step):
            due.append(step)
            saves.snapshot(state(step), position=0)()
    assert due == [6, 9, 12], "the first step at or after 4, 8 and 12"


def test_a_run_saves_its_first_step_where_each_is_saved_and_none_where_none_is(tmp_path: Path) -> None:
    assert keeper(tmp_path, save_steps=1).due(1)
    for none in (keeper(tmp_path), keeper(tmp_path, save_strategy="no", save_steps=1)):
        assert not any(none.due(step) for step in range(3))


def test_nothing_is_saved_before_the_delay(tmp_path: Path) -> None:
    saves = keeper(tmp_path, save_steps=2, save_delay_steps=7)
    assert [step for step in (2, 4, 6, 8) if saves.due(step)] == [8]


def test_an_epoch_of_delay_counts_in_steps(tmp_path: Path) -> None:
    saves = keeper(tmp_path, save_steps=2, save_delay_epochs=0.5)
    assert [step for step in (2, 4, 6) if saves.due(step)] == [6], "100 records by 10 are 10 steps an epoch"
    saves = keeper(tmp_path, save_steps=10, save_delay_epochs=1.1, effective_batch_size=1)
    assert saves.due(110), "exactly 110, though 1.1 times 100 of floats is more"


def test_the_limit_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    saves = keeper(tmp_path, save_total_limit=2)
    f1 = (0.5, 0.9, 0.7, 0.6)
    for step in range(1, 5):
        saves.snapshot(state(step, *f1[:step]), position=0)()
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]
    assert json.loads((tmp_path / "r" / "best.json").read_text()) == {
        "checkpoint": "checkpoint-2",
        "metric": "eval_rollout_f1",
        "value": 0.9,
    }


def test_the_limit_counts_the_newest_once_where_nothing_was_evaluated(tmp_path: Path) -> None:
    saves = keeper(tmp_path, save_total_limit=2)
    for step in (1, 2, 3):
        assert saves.snapshot(state(step), position=0)() == tmp_path / "r" / f"checkpoint-{step}"
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    assert not (tmp_path / "r" / "best.json").exists()


def test_below_the_limit_every_checkpoint_stays(tmp_path: Path) -> None:
    for step in range(1, 5):
        keeper(tmp_path, save_total_limit=5).snapshot(state(step), position=0)()
        assert names(tmp_path) == [f"checkpoint-{number}" for number in range(1, step + 1)]


def test_a_smaller_value_can_be_the_better_one(tmp_path: Path) -> None:
    saves = keeper(tmp_path, greater_is_better=False)
    for step in (1, 2):
        saves.snapshot(state(step, *(0.5, 0.9)[:step]), position=0)()
    assert json.loads((tmp_path / "r" / "best.json").read_text())["checkpoint"] == "checkpoint-1"


def test_a_checkpoint_remembers_the_evaluation_that_was_made_up_for_after_it(tmp_path: Path) -> None:
    saves = keeper(tmp_path)
    path = saves.snapshot(state(2, 0.5), position=20)()
    (tmp_path / "r" / "metrics.jsonl").write_text("{}\n")
    saves.snapshot(state(2, 0.5, 0.9), position=20)()
    point = ResumePoint.read(path)
    assert [step for step, _ in point.state.evaluations] == [1, 2]
    assert point.lengths["metrics.jsonl"] == 3
    assert json.loads((tmp_path / "r" / "best.json").read_text())["value"] == 0.9


def test_a_model_that_matches_nothing_is_not_the_best_by_a_share_of_its_matches(tmp_path: Path) -> None:
    share = "eval_rollout_desc_exact_acc_on_matched"
    saves = keeper(tmp_path, metric_for_best_model=share, save_total_limit=1)
    good = SegmentStats(gt_objects=10, valid_predictions=10, matched_pairs=9, desc_pairs_total=9, desc_exact_ok=8)
    scored = [
        RolloutTotals.of([stats]).evaluation_metrics(desc_enabled=True)
        for stats in (SegmentStats(gt_objects=10), good, SegmentStats(gt_objects=10))
    ]
    assert [metrics[share] for metrics in scored] == [1.0, 8 / 9, 1.0]
    for step in (1, 2, 3):
        saves.snapshot(LoopState(step=step, evaluations=list(enumerate(scored[:step], start=1))), position=0)()
        assert (tmp_path / "r" / "best.json").exists() == (step > 1)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    assert json.loads((tmp_path / "r" / "best.json").read_text())["checkpoint"] == "checkpoint-2"
