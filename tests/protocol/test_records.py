"""The data set: what a line must hold, with file and line in every error, in bounded memory and in a seeded order."""

from __future__ import annotations

import json
import pickle
import random
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.contracts import Shape
from protocol.errors import RecordError
from protocol.records import (
    RecordFile,
    epoch_permutation,
    sample_with_replacement,
)

BOX = {"bbox_2d": ["<|coord_1|>", "<|coord_2|>", "<|coord_3|>", "<|coord_4|>"], "desc": "cat"}


def line(**changes: Any) -> dict[str, Any]:
    return {"images": ["a.png"], "width": 64, "height": 32, "objects": [BOX]} | changes


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    texts = [text if isinstance(text, str) else json.dumps(text) for text in lines]
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


def error_of(path: Path) -> str:
    with pytest.raises(RecordError) as caught:
        list(RecordFile(path))
    return str(caught.value)


def test_a_line_becomes_a_record_with_absolute_image_and_ordered_objects(tmp_path: Path) -> None:
    low = {"poly": [500, 600, 700, 600, 700, 800], "desc": " kite "}
    path = write(tmp_path / "train.jsonl", line(objects=[low, BOX], summary="ignored"))
    (record,) = RecordFile(path)
    assert record.images == (str(tmp_path / "a.png"),)
    assert (record.index, record.source) == (0, f"{path}:1")
    assert [(truth.index, truth.desc, truth.shape) for truth in record.objects] == [
        (1, "cat", Shape("bbox_2d", (1, 2, 3, 4))),
        (2, "kite", Shape("poly", (500, 600, 700, 600, 700, 800))),
    ]


def test_a_line_in_another_encoding_says_so(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(json.dumps(line()).encode() + b"\n" + b'{"images": ["\xe9.png"]}\n')
    assert error_of(path) == f"{path}:2: is no UTF-8 (invalid continuation byte at byte 13); save the file as UTF-8"


def test_a_record_without_objects_is_valid(tmp_path: Path) -> None:
    (record,) = RecordFile(write(tmp_path / "t.jsonl", line(objects=[])))
    assert record.objects == ()


def test_a_box_with_three_values_is_named_by_file_line_and_field(tmp_path: Path) -> None:
    good, bad = BOX, BOX | {"bbox_2d": [1, 2, 3]}
    path = write(tmp_path / "train.jsonl", *[line()] * 16, line(objects=[good, good, bad]))
    assert error_of(path).startswith(f"{path}:17: objects[2].bbox_2d has 3 values, expected 4")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": []}, "images has 0 paths, expected 1"),
        ({"images": ["a", "b"]}, "images has 2 paths, expected 1"),
        ({"images": ["caf\udce9.png"]}, r"images[0] 'caf\udce9.png' is no text"),
        ({"images": "a.png"}, 'images is "a.png", expected a list'),
        ({"width": 0}, "width is 0, expected a whole number > 0"),
        ({"height": None}, "height is missing"),
        ({"width": True}, "width is true"),
        ({"objects": None}, "objects is missing, expected a list"),
        ({"objects": [3]}, "objects[0] is 3, expected an object"),
        ({"objects": [{"desc": "a"}]}, "objects[0] has neither bbox_2d nor poly"),
        ({"objects": [{"bbox_2d": [1, 2, 3, 4]}]}, "objects[0].desc must be text, got NoneType"),
        ({"objects": [BOX | {"desc": "cat, black"}]}, "objects[0].desc 'cat, black' holds ', ' at 3"),
        ({"objects": [BOX | {"line": [1, 2]}]}, "objects[0].line is not supported"),
        ({"objects": [BOX | {"bbox_2d": "x"}]}, 'objects[0].bbox_2d is "x", expected a flat list'),
        ({"objects": [BOX | {"bbox_2d": [1, 2, 3, 1000]}]}, "objects[0].bbox_2d[3] is 1000, expected"),
        ({"objects": [BOX | {"bbox_2d": [1, 2, 3, 1.5]}]}, "objects[0].bbox_2d[3] is 1.5, expected"),
        ({"objects": [BOX | {"bbox_2d": [1, 2, 3, "<|coord_1000|>"]}]}, "objects[0].bbox_2d[3]: '<|coord_1000|>'"),
        (
            {"objects": [{"poly": [1, 2, 3, 4], "desc": "a"}]},
            "objects[0].poly has 4 values, expected an even number >= 6",
        ),
        ({"objects": [{"poly": [1] * 7, "desc": "a"}]}, "objects[0].poly has 7 values"),
    ],
)
def test_a_malformed_line_is_named_by_field(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "t.jsonl", line(**changes))
    assert error_of(path).startswith(f"{path}:1: {words}")


@pytest.mark.parametrize(
    ("text", "words"), [("{", "is no JSON"), ("[]", "is a JSON list"), ("\n" + json.dumps(line()), "is no JSON")]
)
def test_a_line_that_is_no_record_is_an_error(tmp_path: Path, text: str, words: str) -> None:
    assert words in error_of(write(tmp_path / "t.jsonl", text))


def test_bytes_that_are_no_text_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_bytes(b'{"images": ["\xff"]}\n')
    assert error_of(tmp_path / "t.jsonl").startswith(f"{tmp_path / 't.jsonl'}:1: ")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="cannot be read"):
        RecordFile(tmp_path / "gone.jsonl")
    with pytest.raises(RecordError, match="cannot be read"):
        list(RecordFile(tmp_path / "gone.jsonl"))


@pytest.mark.parametrize("chunk", [2, 1 << 20])
@pytest.mark.parametrize("end", ["", "\n", "\n\n \n"])
def test_random_access_gives_what_streaming_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, chunk: int
) -> None:
    monkeypatch.setattr("protocol.records._CHUNK_BYTES", chunk)
    lines = [json.dumps(line(width=width, images=[f"é{width}.png"])) for width in range(1, 40)]
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join(lines) + end, encoding="utf-8")
    streamed = list(RecordFile(path))
    records = pickle.loads(pickle.dumps(RecordFile(path)))
    assert len(records) == len(streamed) == 39
    assert [records[row] for row in reversed(range(39))] == streamed[::-1]
    with pytest.raises(IndexError, match=r"0\.\.38, got 39"):
        records[39]


def test_a_limit_keeps_the_first_records(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", *[line(width=width) for width in range(1, 9)], "broken")
    records = RecordFile(path, limit=3)
    assert [records[row].width for row in range(len(records))] == [1, 2, 3]
    assert [record.width for record in RecordFile(path, limit=3)] == [1, 2, 3]
    assert len(RecordFile(path, limit=99)) == 9


def test_an_empty_file_and_a_changed_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="holds no record"):
        RecordFile(write(tmp_path / "empty.jsonl"))
    path = write(tmp_path / "t.jsonl", line(), line())
    records = RecordFile(path)
    write(path, line(width=1))
    with pytest.raises(RecordError, match="was changed while it is in use"):
        records[0]


def test_a_broken_line_does_not_hide_its_neighbours(tmp_path: Path) -> None:
    records = RecordFile(write(tmp_path / "t.jsonl", line(width=1), "broken", line(width=3)))
    assert (records[0].width, records[2].width) == (1, 3)
    with pytest.raises(RecordError, match=r"t\.jsonl:2: is no JSON"):
        records[1]


def test_random_order_is_new_in_each_epoch_and_the_same_in_a_rerun(tmp_path: Path) -> None:
    objects = [BOX | {"desc": f"d{number}"} for number in range(12)]
    path = write(tmp_path / "t.jsonl", line(objects=objects))

    def order(epoch: int, seed: int = 7) -> list[str]:
        return [truth.desc for truth in RecordFile(path, ordering="random", seed=seed).get(0, epoch).parse().objects]

    assert order(0) == order(0)
    assert order(0) != order(1)
    assert order(0) != order(0, seed=8)
    assert sorted(order(0)) == sorted(item["desc"] for item in objects)


def traced_peak(call: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_two_hundred_thousand_records_are_indexed_in_eight_bytes_each(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    text = json.dumps(line())
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(200):
            file.write(f"{text}\n" * 1000)
    records: list[RecordFile] = []
    peak = traced_peak(lambda: records.append(RecordFile(path)))
    assert len(records[0]) == 200_000
    assert records[0][199_999].source.endswith(":200000")
    assert path.stat().st_size > 25e6
    assert peak < 200_000 * 8 * 2 + 16 * 2**20  # offsets and their parts, and one chunk with its mask


def test_going_through_a_file_holds_one_record_at_a_time(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", *[line(objects=[BOX] * 5)] * 3000)
    records = RecordFile(path)

    def read() -> None:
        assert sum(1 for _ in records) == 3000

    assert path.stat().st_size > 1e6
    assert traced_peak(read) < 2**19


@given(st.integers(1, 300), st.integers(0, 2**40), st.integers(0, 50))
def test_an_epoch_is_a_permutation_that_depends_on_seed_and_epoch_only(count: int, seed: int, epoch: int) -> None:
    rows = epoch_permutation(count, seed, epoch)
    assert sorted(rows.tolist()) == list(range(count))
    assert (rows == epoch_permutation(count, seed, epoch)).all()


def test_the_first_epoch_is_the_specifications() -> None:
    expected = list(range(10))
    random.Random(42 ^ 0x9E3779B1).shuffle(expected)  # (seed & 0xFFFFFFFF) ^ ((0 + 1) * 0x9E3779B1 & 0xFFFFFFFF)
    assert epoch_permutation(10, 42, 0).tolist() == expected
    assert epoch_permutation(10, 42, 1).tolist() != expected


def test_a_sample_with_replacement_is_seeded() -> None:
    rows = sample_with_replacement(5, 40)
    assert (rows == sample_with_replacement(5, 40)).all()
    assert set(rows.tolist()) <= set(range(5))
    assert len(rows) == 40


def test_images_are_confined_to_root_image_dir_where_it_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside.png"
    root.mkdir()
    outside.touch()
    (root / "link.png").symlink_to(outside)
    monkeypatch.setenv("ROOT_IMAGE_DIR", str(root))
    for image in ("../outside.png", str(outside), "link.png", "a/../../outside.png"):
        path = write(tmp_path / "r.jsonl", line(images=[image]))
        with pytest.raises(RecordError, match="outside ROOT_IMAGE_DIR"):
            list(RecordFile(path))
    (record,) = RecordFile(write(tmp_path / "r.jsonl", line(images=["a/../b.png"])))
    assert record.images[0].startswith(str(root)), "relative paths count from it"
    monkeypatch.setenv("ROOT_IMAGE_DIR", "")
    (record,) = RecordFile(write(tmp_path / "r.jsonl", line(images=[str(outside)])))
    assert record.images == (str(outside),)


def test_an_image_that_would_unfold_into_too_many_pixels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="width x height"):
        list(RecordFile(write(tmp_path / "r.jsonl", line(width=1 << 14, height=1 << 13))))


def test_a_line_parses_to_the_same_record_in_another_process_with_another_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "train.jsonl", line())
    monkeypatch.setenv("ROOT_IMAGE_DIR", str(tmp_path))
    records = RecordFile(path)
    moved = pickle.loads(pickle.dumps(records.get(0)))
    monkeypatch.setenv("ROOT_IMAGE_DIR", "/elsewhere")

    assert moved.parse() == records[0]
    assert moved.parse().images == (str(tmp_path / "a.png"),)
