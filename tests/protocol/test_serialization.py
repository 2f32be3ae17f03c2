"""Canonical text: what is written, what is refused, and that it reads back to itself."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.contracts import GroundTruth, Shape
from protocol.norm1000 import to_bin, to_bins, to_pixels
from protocol.serialization import assistant_text, clean_desc, sanitize_desc
from tests.protocol.golden.payloads import extract_truths, payload, payload_text, serialize_record, user_content

BINS = st.integers(0, 999)
BOXES = st.lists(BINS, min_size=4, max_size=4).map(lambda bins: Shape("bbox_2d", tuple(bins)))
POLYS = st.lists(st.tuples(BINS, BINS), min_size=3, max_size=8).map(
    lambda points: Shape("poly", tuple(value for point in points for value in point))
)
DESCS = st.text(min_size=1, max_size=20).map(clean_desc).filter(bool)
TRUTHS = st.lists(st.tuples(DESCS, BOXES | POLYS), max_size=6).map(
    lambda items: [GroundTruth(index=at, desc=desc, shape=shape) for at, (desc, shape) in enumerate(items, start=1)]
)


def record(*objects: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"images": ["/a.jpg"], "width": 10, "height": 10, "objects": list(objects)} | changes


def tokens(*bins: int) -> list[str]:
    return [f"<|coord_{bin_}|>" for bin_ in bins]


def test_the_specifications_example() -> None:
    items = [
        {"poly": tokens(12, 34, 56, 34, 56, 78), "poly_points": 3, "desc": "yellow box"},
        {"bbox_2d": tokens(100, 20, 180, 200), "desc": "tool/cabinet"},
    ]
    assert serialize_record(record(*items)).text == (
        '{"object_1": {"desc": "tool/cabinet", "bbox_2d": ["<|coord_100|>", "<|coord_20|>", "<|coord_180|>", '
        '"<|coord_200|>"]}, "object_2": {"desc": "yellow box", "poly": [["<|coord_12|>", "<|coord_34|>"], '
        '["<|coord_56|>", "<|coord_34|>"], ["<|coord_56|>", "<|coord_78|>"]]}}'
    )


@given(TRUTHS)
def test_an_answer_reads_back_to_its_objects(truths: list[GroundTruth]) -> None:
    text = assistant_text(truths)
    assert extract_truths(json.loads(text)) == tuple(truths)
    assert payload_text(payload(truths)) == text
    assert extract_truths(payload(truths)) == tuple(truths)


def test_no_objects_close_the_list() -> None:
    assert assistant_text([]) == "{}"
    assert serialize_record(record()).payload == {}


def test_objects_are_sorted_by_their_top_then_left() -> None:
    items = [
        {"desc": "without geometry"},
        {"bbox_2d": [5, 9, 6, 10], "desc": "low"},
        {"poly": [9, 5, 3, 7, 9, 7], "desc": "poly"},
        {"bbox_2d": [4, 5, 6, 7], "desc": "right of poly"},
        {"bbox_2d": [4, 5, 6, 9], "desc": "tie stays behind"},
    ]
    descs = [item.desc for item in serialize_record(record(*items)).objects]
    assert descs == ["poly", "right of poly", "tie stays behind", "low", "without geometry"]


def test_random_ordering_shuffles_with_the_given_generator() -> None:
    items = [{"bbox_2d": [1, 2, 3, 4], "desc": f"d{number}"} for number in range(9)]

    def text(seed: int) -> str:
        return serialize_record(record(*items), ordering="random", rng=random.Random(seed)).text

    assert text(1) == text(1) != text(2)


def test_numbers_that_are_no_bins_stay_as_they_are() -> None:
    item = {"bbox_2d": [1, 2, 3, 1.5], "desc": "a"}
    assert serialize_record(record(item, width=None)).payload == {"object_1": {"desc": "a", "bbox_2d": [1, 2, 3, 1.5]}}
    near = {"bbox_2d": [1.0000001, 2, 3, 4], "desc": "a"}
    assert serialize_record(record(near)).payload["object_1"]["bbox_2d"] == tokens(1, 2, 3, 4)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objects": None}, "objects must be a list"),
        ({"objects": [1]}, "an object must be a mapping"),
        ({"objects": [{"bbox_2d": "x", "desc": "a"}]}, "bbox_2d must be a list"),
        ({"objects": [{"poly": [1, 2, 3], "desc": "a"}]}, "poly has 3 values, expected x, y pairs"),
        ({"height": 0, "objects": [{"bbox_2d": [1, 2, 3, 4], "desc": "a"}]}, "height must be > 0"),
        ({"objects": [{"bbox_2d": ["<|coord_1|>", "x", 1, 2], "desc": "a"}]}, "'x' is no coordinate token"),
    ],
)
def test_what_a_data_set_may_not_hold(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        serialize_record(record(**changes))


@pytest.mark.parametrize(
    "bad", [None, 3, "", "  ", "a\nb", "a\tb", "a  b", "a, b", "a ,b", "a / b", "a: b", "a<|im_end|>", "cat \ud83d"]
)
def test_a_desc_the_canonical_text_cannot_hold_is_refused(bad: object) -> None:
    with pytest.raises(ValueError, match="desc"):
        sanitize_desc(bad)


@given(st.text(max_size=30) | st.text(alphabet="<|>a ,", max_size=30))
def test_a_cleaned_desc_is_always_accepted(text: str) -> None:
    cleaned = clean_desc(text)
    assert not cleaned or sanitize_desc(cleaned) == cleaned


@given(
    st.dictionaries(
        st.sampled_from(["object_1", "object_02", "x"]),
        st.dictionaries(
            st.sampled_from(["desc", "bbox_2d", "poly"]),
            st.none()
            | st.text(max_size=3)
            | st.lists(st.none() | st.floats() | st.integers() | st.text(max_size=3) | st.booleans(), max_size=7),
        ),
    )
)
def test_extraction_skips_and_never_fails(answer: dict[str, Any]) -> None:
    for truth in extract_truths(answer):
        assert truth.desc.strip() == truth.desc != ""
        assert all(0 <= bin_ <= 999 for bin_ in truth.shape.bins)


def test_the_user_turn_shows_the_image_before_the_text() -> None:
    assert user_content(["/a.jpg"], "P") == [{"type": "image", "image": "/a.jpg"}, {"type": "text", "text": "P"}]


@given(st.floats(-100, 2000), st.integers(1, 5000))
def test_a_bin_is_always_on_the_grid(value: float, side: int) -> None:
    assert 0 <= to_bin(value, side) <= 999


@given(st.integers(0, 999), st.integers(1, 5000))
def test_a_bin_survives_the_way_through_pixels(bin_: int, side: int) -> None:
    assert to_bins(to_pixels([bin_, bin_], side, side), side, side) == (bin_, bin_)


def test_a_side_of_zero_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="side must be > 0"):
        to_bin(1, 0)
