"""The import command: its tables, its contact sheet, resized copies, and the real photographs where they are."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from deploy.images import Resizer, check_image, fit_size
from deploy.import_coco import add_arguments, print_summary, run, split_shares
from protocol.coco import ImageFile, ImportSummary, Rule
from protocol.errors import ConfigError, RecordError
from protocol.records import RecordFile

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd"


def instances(folder: Path, *, size: tuple[int, int] = (64, 96)) -> Path:
    """Two grey images with a box and a triangle each, and one whose entry lies about its size."""
    (folder / "images").mkdir()
    images, annotations = [], []
    for number in (1, 2, 3):
        Image.new("RGB", size, "grey").save(folder / "images" / f"{number}.jpg")
        width, height = size if number < 3 else (size[0] + 1, size[1])
        images.append({"id": number, "file_name": f"{number}.jpg", "width": width, "height": height})
        triangle = [8.0, 8.0, 48.0, 8.0, 48.0, 60.0]
        annotations += [
            {"image_id": number, "category_id": 1, "bbox": [8, 8, 40, 52], "segmentation": [triangle]},
            {"image_id": number, "category_id": 1, "bbox": [20, 30, 10, 10]},
        ]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "flag"}]}
    (folder / "instances.json").write_text(json.dumps(data))
    return folder / "instances.json"


def command(folder: Path, *more: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(
        [str(folder / "instances.json"), "--images", str(folder / "images"), "--out", str(folder / "out.jsonl"), *more]
    )


def last_line(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
    return found


def test_the_command_writes_records_tables_and_a_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    instances(tmp_path)
    assert run(command(tmp_path, "--geometry", "poly", "--contact-sheet", str(tmp_path / "sheet.png"))) == 0
    shown = capsys.readouterr().out
    assert "image_other_size" in shown
    assert last_line(shown) == {
        "images": 3,
        "annotations": 6,
        "written": {str(tmp_path / "out.jsonl"): {"records": 2, "objects": 4}},
        "dropped": 2,
        "rules": {"poly_missing": 2, "image_other_size": 1, "in_dropped_image": 2},
        "geometries": {"poly": 2, "bbox_2d": 2},
    }
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 2 * 360  # two records


def test_the_command_says_what_it_reads_before_it_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "instances.json"
    path.write_text(" " * 3 * 2**19)
    with pytest.raises(RecordError, match="is no JSON"):
        run(command(tmp_path))
    assert capsys.readouterr().err == f"rollmatch: reading {path}, 1.5 MiB\n"
    with pytest.raises(RecordError, match="cannot be read"):
        run(command(tmp_path / "gone"))


def test_an_import_of_nothing_is_an_error(tmp_path: Path) -> None:
    instances(tmp_path)
    with pytest.raises(RecordError, match="no image was imported"):
        run(command(tmp_path, "--images", str(tmp_path / "gone")))


def test_an_import_of_nothing_leaves_the_earlier_file(tmp_path: Path) -> None:
    instances(tmp_path)
    run(command(tmp_path))
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(RecordError, match="no file was written"):
        run(command(tmp_path, "--images", str(tmp_path / "gone")))
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert not list(tmp_path.glob(".*"))


def test_the_folder_is_doubted_only_where_images_were_missing(tmp_path: Path) -> None:
    instances(tmp_path)
    with pytest.raises(RecordError, match="is --images right"):
        run(command(tmp_path, "--images", str(tmp_path / "gone")))
    for more in (("--limit", "0"), ("--min-side", "1000")):
        with pytest.raises(RecordError) as caught:
            run(command(tmp_path, *more))
        assert "--images" not in str(caught.value)


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ([[30, 40, 60, 90]] * 2, "2 of 2 boxes reached over their image's border"),
        ([[8, 8, 40, 52], *[[0.1, 0.2, 0.001, 0.001]] * 3], "3 of 4 boxes were dropped as empty or too small"),
        ([[8, 8, 40, 52]] * 2, None),
    ],
)
def test_boxes_that_do_not_fit_their_images_are_asked_about(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], boxes: list[list[float]], words: str | None
) -> None:
    """Corners in the place of sizes, shares in the place of pixels."""
    path = instances(tmp_path)
    data = json.loads(path.read_text())
    data["annotations"] = [{"image_id": 1 + at % 2, "category_id": 1, "bbox": box} for at, box in enumerate(boxes)]
    path.write_text(json.dumps(data))
    run(command(tmp_path))
    _, *said = capsys.readouterr().err.splitlines()
    assert said == ([] if words is None else [f"rollmatch: {words}; is bbox [x, y, width, height] in pixels?"])


@pytest.mark.parametrize(
    "more",
    [
        ("--out", "images"),
        ("--contact-sheet", "sheet.xyz"),
        ("--contact-sheet", "images"),
        ("--max-pixels", "8192"),
        ("--write-images", "instances.json"),
    ],
)
def test_what_cannot_be_written_is_named_before_the_import(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, str]
) -> None:
    instances(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^{more[0]}: "):
        run(command(tmp_path, *more))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "instances.json"]


def test_help_shows_every_default() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    for action in parser._actions:
        if action.default not in (None, False, {}, argparse.SUPPRESS):
            shown = f"{action.default:g}" if isinstance(action.default, float) else action.default
            assert f"(default {shown})" in str(action.help)


@pytest.mark.parametrize(
    "more",
    [
        ("--max-points", "2"),
        ("--main-part", "1.5"),
        ("--box-fill", "-1"),
        ("--max-objects", "0"),
        ("--write-images=small", "--max-pixels", "-1"),
    ],
)
def test_an_option_out_of_range_is_named(tmp_path: Path, more: tuple[str, ...]) -> None:
    instances(tmp_path)
    with pytest.raises(ConfigError, match=f"{more[-2]}: must be in"):
        run(command(tmp_path, *more))


def test_shares_are_read_from_one_word() -> None:
    assert split_shares("train=0.9,val=0.1") == {"train": 0.9, "val": 0.1}
    for text in ("train", "train=x", "=1"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"write train=0\.9,val=0\.1"):
            split_shares(text)


@pytest.mark.parametrize(
    ("size", "fitted"),
    [((640, 480), (640, 480)), ((640, 427), (640, 416)), ((10, 10), (64, 64)), ((3000, 10), (3008, 32))],
)
def test_a_copy_has_sides_that_the_model_takes(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert fit_size(*size, max_pixels=768 * 1024) == fitted


@pytest.mark.parametrize("size", [(4000, 3000), (20000, 33), (31, 9000), (1, 1)])
def test_a_copy_stays_within_its_bounds(size: tuple[int, int]) -> None:
    width, height = fit_size(*size, max_pixels=768 * 1024)
    assert width % 32 == height % 32 == 0
    assert 4 * 1024 <= width * height <= 768 * 1024


def test_resized_copies_carry_their_own_size(tmp_path: Path) -> None:
    instances(tmp_path, size=(100, 70))
    run(command(tmp_path, "--write-images", str(tmp_path / "small"), "--max-pixels", "8192"))
    records = list(RecordFile(tmp_path / "out.jsonl"))
    assert [(record.width, record.height) for record in records] == [(96, 64), (96, 64)]
    for record in records:
        with Image.open(record.images[0]) as image:
            assert image.size == (96, 64)
        assert Path(record.images[0]).parent == tmp_path / "small"


def test_a_door_names_what_is_wrong_with_an_image(tmp_path: Path) -> None:
    Image.new("L", (40, 30)).save(tmp_path / "a.bmp")
    (tmp_path / "text.jpg").write_text("no image")
    assert check_image(tmp_path / "a.bmp", 40, 30) == ImageFile(tmp_path / "a.bmp", 40, 30)
    assert check_image(tmp_path / "a.bmp", 40, 31) is Rule.IMAGE_OTHER_SIZE
    assert check_image(tmp_path / "text.jpg", 1, 1) is Rule.IMAGE_MISSING
    assert check_image(tmp_path / "gone.jpg", 1, 1) is Rule.IMAGE_MISSING
    Image.new("I;16", (40, 30)).save(tmp_path / "deep.png")
    assert check_image(tmp_path / "deep.png", 40, 30) is Rule.IMAGE_DEEP


def test_copies_have_names_of_their_own(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("a.png", "a.bmp", "a", "../a.jpg", "../elsewhere/a.jpg"):
        Image.new("RGB", (40, 30)).save(images / name, format="PNG")
    door = Resizer(tmp_path / "copies", images, 8192)
    made = [door(images / name, 40, 30) for name in ("a.png", "a.bmp", "../a.jpg", "../elsewhere/a.jpg", "a")]
    assert made[-1] is Rule.IMAGE_TWICE  # its copy would be the a.png that is there
    assert [str(file.path.relative_to(tmp_path)) for file in made[:2] if not isinstance(file, Rule)] == [
        "copies/a.png",
        "copies/a.bmp.png",
    ]
    assert len({file.path for file in made if isinstance(file, ImageFile)}) == 4


def test_a_picture_that_is_cut_off_is_dropped_and_the_import_goes_on(tmp_path: Path) -> None:
    instances(tmp_path)
    path = tmp_path / "images" / "1.jpg"
    path.write_bytes(path.read_bytes()[:-40])
    run(command(tmp_path, "--write-images", str(tmp_path / "small")))
    assert [Path(record.images[0]).name for record in RecordFile(tmp_path / "out.jsonl")] == ["2.jpg"]


@pytest.mark.parametrize("folder", ["images", "images/small", "link"])
def test_copies_among_the_originals_are_refused(tmp_path: Path, folder: str) -> None:
    instances(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "images")
    before = (tmp_path / "images" / "1.jpg").read_bytes()
    with pytest.raises(ConfigError, match=r"--write-images: .* name a folder outside it"):
        run(command(tmp_path, "--write-images", str(tmp_path / folder)))
    assert (tmp_path / "images" / "1.jpg").read_bytes() == before


def test_records_in_a_linked_folder_find_their_images(tmp_path: Path) -> None:
    instances(tmp_path)
    (tmp_path / "big" / "data").mkdir(parents=True)
    (tmp_path / "data").symlink_to(tmp_path / "big" / "data")
    run(command(tmp_path, "--out", str(tmp_path / "data" / "out.jsonl")))
    assert all(Path(record.images[0]).is_file() for record in RecordFile(tmp_path / "data" / "out.jsonl"))


def test_the_table_folds_rare_descriptions(tmp_path: Path) -> None:
    instances(tmp_path)
    run(command(tmp_path, "--split", "train=0.5,val=0.5"))
    paths = {str(path): (len(list(RecordFile(path))), 0) for path in sorted(tmp_path.glob("out_*.jsonl"))}
    summary = ImportSummary(
        source="x",
        images_read=2,
        annotations_read=4,
        written=paths,
        rules={},
        geometries={},
        descs={f"d{number}": 1 for number in range(20)},
        objects_per_image=(2, 2.0, 2),
    )
    console = Console(width=100, file=io.StringIO())
    print_summary(summary, console=console)
    assert "8 more" in console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.shared
@pytest.mark.skipif(
    not BCCD.is_dir(), reason="the blood cell photographs are not beside the checkout (../shared/data/bccd)"
)
@pytest.mark.parametrize(
    ("split", "images", "objects", "rules"),
    [
        ("train", 205, 2804, {"box_degenerate": 1, "box_at_border": 301}),
        ("val", 87, 1137, {"box_degenerate": 1, "box_at_border": 132}),
        ("test", 72, 945, {"box_at_border": 112}),
    ],
)
def test_the_photographs_are_imported_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str, images: int, objects: int, rules: dict[str, int]
) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    file = BCCD / f"instances_{split}.json"
    out = tmp_path / "out.jsonl"
    run(parser.parse_args([str(file), "--images", str(BCCD / "images"), "--out", str(out)]))
    records = list(RecordFile(out))
    assert (len(records), sum(len(record.objects) for record in records)) == (images, objects)
    assert last_line(capsys.readouterr().out)["rules"] == rules
    assert all(Path(record.images[0]).is_file() for record in records)
