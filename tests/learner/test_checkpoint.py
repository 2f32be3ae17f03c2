"""A checkpoint folder is whole or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.checkpoint import Checkpoint, replacing
from protocol.errors import ConfigError


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    with Checkpoint.writing(tmp_path / "step-3", 2, 1, {"pending": ["record=1/epoch=0/rollout=0"]}) as folder:
        (folder / "state").write_text("x")
    found = Checkpoint.read(tmp_path / "step-3", 2, 1)
    assert found.extra == {"pending": ["record=1/epoch=0/rollout=0"]}
    assert (tmp_path / "step-3" / "state").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_a_crash_while_writing_leaves_no_checkpoint_and_does_not_stop_the_next(tmp_path: Path) -> None:
    path = tmp_path / "step-3"
    with pytest.raises(FileNotFoundError), Checkpoint.writing(path, 1, 0, {}) as folder:
        (folder / "no folder" / "half").touch()
    assert not path.exists()
    with Checkpoint.writing(path, 1, 0, {}):
        pass
    assert [entry.name for entry in path.iterdir()] == ["trainer.json"]


def test_a_crash_while_replacing_keeps_the_old_one(tmp_path: Path) -> None:
    with replacing(tmp_path / "best") as folder:
        (folder / "old").touch()
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "best") as folder:
        (folder / "no folder" / "half").touch()
    assert (tmp_path / "best" / "old").exists()
    with replacing(tmp_path / "best") as folder:
        (folder / "new").touch()
    assert [entry.name for entry in (tmp_path / "best").iterdir()] == ["new"]


def test_a_folder_without_its_last_file_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.resume: .* is no complete checkpoint"):
        Checkpoint.read(tmp_path, 1, 0)


@pytest.mark.parametrize(("ranks", "stage"), [(1, 2), (2, 0), (2, 3)])
def test_partitioned_state_is_refused_by_a_run_of_another_shape(tmp_path: Path, ranks: int, stage: int) -> None:
    with Checkpoint.writing(tmp_path / "c", 2, 2, {}):
        pass
    with pytest.raises(ConfigError, match=r"2 ranks with ZeRO stage 2.*cluster\.num_learners"):
        Checkpoint.read(tmp_path / "c", ranks, stage)


def test_replicated_state_fits_any_number_of_ranks(tmp_path: Path) -> None:
    with Checkpoint.writing(tmp_path / "c", 2, 0, {}):
        pass
    assert Checkpoint.read(tmp_path / "c", 5, 0).num_ranks == 2
