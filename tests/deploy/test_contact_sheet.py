"""Records with their objects on one page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from deploy.cli import main
from deploy.contact_sheet import contact_sheet, draw_overlay, sample_rows
from protocol.errors import RecordError
from protocol.records import RecordFile


def write(path: Path, names: list[str]) -> RecordFile:
    lines = [{"images": [name], "width": 64, "height": 64, "objects": []} for name in names]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return RecordFile(path)


def test_an_overlay_draws_boxes_and_polygons_where_they_are(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "black").save(tmp_path / "a.png")
    objects = [{"bbox_2d": [0, 250, 250, 500], "desc": "a"}, {"poly": [500, 500, 900, 500, 900, 900], "desc": "b"}]
    line = {"images": ["a.png"], "width": 64, "height": 64, "objects": objects}
    (tmp_path / "t.jsonl").write_text(json.dumps(line))
    (record,) = RecordFile(tmp_path / "t.jsonl")
    image = draw_overlay(record, 64)
    assert image.getpixel((8, 32)) != (0, 0, 0)  # the box's lower edge, at bin 500 of 64 pixels
    assert image.getpixel((57, 45)) != (0, 0, 0)  # the polygon's right edge, at bin 900
    assert image.getpixel((20, 55)) == (0, 0, 0)
    contact_sheet([RecordFile(tmp_path / "t.jsonl")], tmp_path / "sheet.png", cell=100)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.size == (100, 114)


def test_samples_come_from_all_over_the_files_in_order(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.jsonl", ["x.png"] * 3), write(tmp_path / "b.jsonl", ["x.png"] * 9)]
    assert [(files.index(file), row) for file, row in sample_rows(files, 4)] == [(0, 0), (0, 2), (1, 2), (1, 6)]
    assert [row for _, row in sample_rows(files, 100)] == [*range(3), *range(9)]
    assert [row for _, row in sample_rows(files[1:], 3)] == [1, 4, 7]
    assert [(files.index(file), row) for file, row in sample_rows(files, 1)] == [(1, 4)]


def test_the_short_file_of_a_run_is_on_the_sheet_too(tmp_path: Path) -> None:
    files = [write(tmp_path / "train.jsonl", ["x.png"] * 900), write(tmp_path / "val.jsonl", ["x.png"] * 5)]
    assert [row for file, row in sample_rows(files, 12) if file is files[1]] == [1, 3]
    assert len([*sample_rows(files, 12)]) == 12


def test_what_cannot_be_read_or_drawn_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    file = write(tmp_path / "t.jsonl", ["a.png", "cut.png", "gone.png", "a.png"])
    contact_sheet([file], tmp_path / "sheets" / "sheet.png", cell=100)
    with Image.open(tmp_path / "sheets" / "sheet.png") as sheet:
        assert sheet.size == (200, 114)
    assert "2 records with their objects" in capsys.readouterr().err
    with pytest.raises(RecordError, match="no record could be drawn"):
        contact_sheet([write(tmp_path / "u.jsonl", ["gone.png"])], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_check_draws_both_files_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    for name in ("train", "val"):
        write(tmp_path / f"{name}.jsonl", ["a.png"])
    data = [f"custom.{name}_jsonl={tmp_path / name}.jsonl" for name in ("train", "val")]
    sheet = tmp_path / "sheet.jpg"
    main(["check", "--config", "configs/tutorial.yaml", "--contact-sheet", str(sheet), *data])
    with Image.open(sheet) as image:
        assert image.width == 2 * 360
    (tmp_path / "val.jsonl").unlink()
    assert main(["check", "--config", "configs/tutorial.yaml", "--contact-sheet", str(sheet), *data]) == 2
    with Image.open(sheet) as image:
        assert image.width == 360, "what can be read is drawn"
    (tmp_path / "train.jsonl").unlink()
    assert main(["check", "--config", "configs/tutorial.yaml", "--contact-sheet", str(sheet), *data]) == 2
    assert "no record could be drawn" in capsys.readouterr().err
    assert main(["check", "--config", "configs/tutorial.yaml", "--contact-sheet", "sheet.txt"]) == 2
    assert "--contact-sheet: sheet.txt is no picture" in capsys.readouterr().err
