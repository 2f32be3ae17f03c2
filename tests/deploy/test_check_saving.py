"""What `rollmatch check` says of checkpoints: a run that saves too seldom, and one that saves more than fits."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.loop import LoopState
from deploy.check import check_run
from deploy.check_saving import LONG_RUN, check_saving
from deploy.checkpoints import CheckpointKeeper
from deploy.model_shape import preset
from deploy.sizing import GIB, checkpoint_bytes
from tests.deploy.test_check import run
from tests.deploy.test_checkpoints import FolderLearner


def of_training(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {f"training__{name}": value for name, value in settings.items()}


def found(tmp_path: Path, **training: Any) -> list[str]:
    config = run(tmp_path, model__model="org/some-4B", **of_training(training))
    return [str(finding) for finding in check_saving(config, 400)]


def test_a_long_run_that_saves_only_its_end_is_told_what_a_crash_costs(tmp_path: Path) -> None:
    (text,) = found(tmp_path, max_steps=LONG_RUN + 1)
    assert text == (
        "training.save_steps: is null, so no checkpoint is written before the last of 501 optimizer steps, and a crash "
        "costs everything since the start; set training.save_steps"
    )
    (text,) = found(tmp_path, max_steps=LONG_RUN + 1, save_strategy="no", save_steps=5)
    assert text.startswith("training.save_strategy: is no, so")
    assert not found(tmp_path, max_steps=LONG_RUN)
    assert not found(tmp_path, max_steps=LONG_RUN + 1, save_strategy="epoch", save_total_limit=2)


@pytest.mark.parametrize(
    ("settings", "first", "told"),
    [
        ({"save_steps": 5000}, None, "training.save_steps: is 5000, so no checkpoint"),
        ({"save_steps": 2000}, None, "training.save_steps: is 2000, so no checkpoint"),
        ({"save_steps": 1999}, 1999, None),
        ({"save_steps": 10, "save_delay_steps": 2000}, None, "training.save_delay_steps: is 2000, so no checkpoint"),
        ({"save_steps": 10, "save_delay_steps": 1999}, 1999, None),
        ({"save_steps": 10, "save_delay_epochs": 20.0}, None, "training.save_delay_epochs: is 20.0, so no checkpoint"),
        ({"save_steps": 10, "save_delay_epochs": 0.5}, 50, None),
        ({"save_strategy": "epoch"}, 100, None),
    ],
)
def test_a_first_checkpoint_that_would_come_with_the_last_step_is_told_as_the_keeper_saves(
    tmp_path: Path, settings: dict[str, Any], first: int | None, told: str | None
) -> None:
    settings |= {"max_steps": 2000, "save_total_limit": 3}
    keeper = CheckpointKeeper(run(tmp_path, **of_training(settings)), FolderLearner(), 400)
    assert next(filter(keeper.due, range(2000)), None) == first
    texts = found(tmp_path, **settings)
    assert not texts if told is None else texts[0].startswith(told)


def test_of_an_epoch_that_is_the_whole_run_another_strategy_is_advised(tmp_path: Path) -> None:
    training = {"training__save_strategy": "epoch", "training__num_train_epochs": 1}
    (text,) = (str(finding) for finding in check_saving(run(tmp_path, **training), 3000))
    assert text.startswith("training.save_strategy: is epoch, so no checkpoint is written before the last of 750")
    assert text.endswith("write steps, and set training.save_steps")


def test_checkpoints_that_exceed_the_free_disk_are_told_with_both_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = checkpoint_bytes(preset("4B"), run(tmp_path))
    assert one > 12 * 4e9
    asked: list[Path] = []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or SimpleNamespace(free=10 * one))
    (text,) = found(tmp_path, max_steps=110, save_steps=10)
    assert text == (
        f"training.save_total_limit: is null, and 11 more checkpoints take at least {11 * one / GIB:.0f} GiB, of which "
        f"{tmp_path} has {10 * one / GIB:.0f} free; set it, or raise save_steps"
    )
    assert asked == [tmp_path], "the folder is not there yet"
    assert not found(tmp_path, max_steps=100, save_steps=10)
    assert not found(tmp_path, max_steps=110, save_steps=10, save_total_limit=3)
    assert not found(tmp_path, max_steps=110, save_steps=10, save_delay_steps=20), "ten come after the delay"
    assert "and 11 more checkpoints" in found(tmp_path, max_steps=110, save_steps=10, save_delay_steps=19)[0]
    changes = {"training__max_steps": 110, "training__save_steps": 10, "cluster__address": "auto"}
    elsewhere = run(tmp_path, model__model="org/some-4B", **changes)
    assert not list(check_saving(elsewhere, 400)), "the folder is another machine's"
    save(tmp_path, 10)
    assert list(check_saving(elsewhere, 400)), "and shared with it"
    assert not found(tmp_path, max_steps=110, save_steps=10, resume="auto"), "one of the eleven lies there"
    assert found(tmp_path, max_steps=110, save_steps=10), "a fresh start moves it aside"


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        CheckpointKeeper(run(folder), FolderLearner(), 400).snapshot(LoopState(step=step), position=0)()


@pytest.mark.parametrize(
    ("there", "settings", "to_come"),
    [
        ((990, 1000), {"max_steps": 1100, "save_steps": 10}, 10),  # earlier ones were pruned
        (range(5, 505, 5), {"max_steps": 1500, "save_steps": 10}, 100),  # saved twice as often before
        ((10,), {"max_steps": 110, "save_steps": 10, "save_delay_steps": 45}, 8),  # of step 45 and behind it
        ((60,), {"max_steps": 110, "save_steps": 10, "save_delay_steps": 45}, 5),
        ((100,), {"max_steps": 110, "save_steps": 10}, 1),
        ((10,), {"max_steps": 50, "save_strategy": "epoch", "effective_batch_size": 1000}, 40),  # one at each step
    ],
)
def test_at_a_resume_the_checkpoints_behind_its_step_are_counted(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    there: Sequence[int],
    settings: dict[str, Any],
    to_come: int,
) -> None:
    save(tmp_path, *there)
    saves = CheckpointKeeper(run(tmp_path, **of_training(settings)), FolderLearner(), 400, last_step=there[-1])
    due = 0
    for step in range(there[-1] + 1, settings["max_steps"] + 1):
        if saves.due(step):
            due, saves._last = due + 1, step
    assert due == to_come

    one = checkpoint_bytes(preset("4B"), run(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=to_come * one))
    assert not found(tmp_path, **settings, resume="auto")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=to_come * one - 1))
    (text,) = found(tmp_path, **settings, resume="auto")
    assert f"and {to_come} more checkpoints" in text


def test_at_a_resume_from_another_run_what_lies_in_the_runs_own_folder_counts_for_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "mine", *range(10, 110, 10))
    save(tmp_path / "other", 10)
    (path,) = (tmp_path / "other").rglob("checkpoint-10")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    (text,) = found(tmp_path / "mine", max_steps=110, save_steps=10, resume=str(path))
    assert "and 10 more checkpoints" in text
    (text,) = found(tmp_path / "mine", max_steps=110, save_steps=10, resume=str(tmp_path))
    assert "and 11 more checkpoints" in text, "no checkpoint: the start refuses it, and a check says what it can"


def test_a_check_of_the_run_says_it(tmp_path: Path) -> None:
    texts = [str(each) for each in check_run(run(tmp_path, training__max_steps=501)) if each.severity == "warning"]
    assert any("a crash costs everything since the start" in text for text in texts)
