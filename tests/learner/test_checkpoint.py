"""A checkpoint folder is whole or absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from learner.checkpoint import Checkpoint, check_signature, mend_folder, remove_folder, replacing
from protocol.errors import ConfigError


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    with Checkpoint.writing(tmp_path / "step-3", 2, 1, {"pending": ["record=1/epoch=0/rollout=0"]}) as folder:
        (folder / "state").write_text("x")
    found = Checkpoint.read(tmp_path / "step-3")
    assert found.extra == {"pending": ["record=1/epoch=0/rollout=0"]}
    assert (tmp_path / "step-3" / "state").read_text() == "x"
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]


def test_a_crash_while_writing_leaves_no_checkpoint_and_does_not_stop_the_next(tmp_path: Path) -> None:
    path = tmp_path / "step-3"
    with pytest.raises(FileNotFoundError), Checkpoint.writing(path, 1, 0, {}) as folder:
        (folder / "no folder" / "half").touch()
    assert not list(tmp_path.iterdir())
    with Checkpoint.writing(path, 1, 0, {}):
        pass
    assert [entry.name for entry in path.iterdir()] == ["trainer.json"]


def test_an_error_in_removing_what_a_full_disk_left_hides_no_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="half"), replacing(tmp_path / "best") as folder:
        write_half(folder)
    assert not list(tmp_path.iterdir())


def write_half(folder: Path) -> None:
    """Nothing is left to remove, which is an error in removing."""
    folder.rmdir()
    (folder / "half").touch()


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
        Checkpoint.read(tmp_path)


@pytest.mark.parametrize(("saved", "ranks", "stage"), [(2, 2, 0), (2, 2, 3), (0, 2, 1), (3, 1, 3)])
def test_state_is_refused_by_a_run_of_another_stage_or_size(tmp_path: Path, saved: int, ranks: int, stage: int) -> None:
    with Checkpoint.writing(tmp_path / "c", 2, saved, {}):
        pass
    with pytest.raises(ConfigError, match=rf"2 ranks with ZeRO stage {saved}.*cluster\.num_learners"):
        Checkpoint.read(tmp_path / "c").check_shape(tmp_path / "c", ranks, stage)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_state_below_stage_3_fits_any_number_of_ranks(tmp_path: Path, stage: int) -> None:
    with Checkpoint.writing(tmp_path / "c", 2, stage, {}):
        pass
    Checkpoint.read(tmp_path / "c").check_shape(tmp_path / "c", 5, stage)


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    with Checkpoint.writing(tmp_path / "c", 2, 0, {}):
        pass
    meta = (tmp_path / "c" / "trainer.json").read_text().replace('"format": 3', '"format": 1')
    (tmp_path / "c" / "trainer.json").write_text(meta)
    with pytest.raises(ConfigError, match="has format 1, this version reads 3"):
        Checkpoint.read(tmp_path / "c")


def test_what_a_crash_between_two_renames_left_gets_its_name_back(tmp_path: Path) -> None:
    for name in (".a.replaced", ".b.replaced", "b", ".c.writing", ".d.removed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "from").write_text(name)
    mend_folder(tmp_path)
    assert {path.name: (path / "from").read_text() for path in tmp_path.iterdir()} == {"a": ".a.replaced", "b": "b"}


def test_what_an_earlier_crash_left_neither_stops_a_change_of_folders_nor_stays(tmp_path: Path) -> None:
    for name in ("a", ".a.replaced", ".a.removed", ".a.writing"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "of an earlier run").touch()
    with replacing(tmp_path / "a") as folder:
        (folder / "new").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["new"]
    assert {path.name for path in tmp_path.iterdir()} == {"a", ".a.removed"}
    remove_folder(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_every_file_is_on_disk_before_the_folder_has_its_name_and_the_name_is_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[str, bool]] = []

    def noted(handle: int) -> None:
        place = Path(os.readlink(f"/proc/self/fd/{handle}")).relative_to(tmp_path)
        synced.append((str(place), (tmp_path / "c").exists()))

    monkeypatch.setattr(os, "fsync", noted)
    with Checkpoint.writing(tmp_path / "c", 1, 0, {}) as folder:
        (folder / "ranks").mkdir()
        (folder / "ranks" / "0.pt").touch()

    within = {".c.writing/trainer.json", ".c.writing/ranks", ".c.writing/ranks/0.pt"}
    assert within <= {place for place, named in synced if not named}
    assert synced[-1] == (".", True)


def test_a_removed_folder_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    remove_folder(tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_state_of_other_tensors_is_refused_by_the_first_that_differs(tmp_path: Path) -> None:
    saved = {"model.torch_dtype": "float32", "a.lora_A": "[2, 8]", "b": "[4]"}
    check_signature(tmp_path, saved, dict(saved))
    for now, words in (
        (saved | {"model.torch_dtype": "bfloat16"}, "model.torch_dtype: float32 there, bfloat16 here"),
        ({name: saved[name] for name in ("model.torch_dtype", "b")}, r"a.lora_A: \[2, 8\] there, not trained here"),
        (saved | {"c": "[4]"}, r"c: not trained there, \[4\] here"),
    ):
        with pytest.raises(ConfigError, match=rf"training.resume: .* trained 1 things otherwise, the first is {words}"):
            check_signature(tmp_path, saved, now)
