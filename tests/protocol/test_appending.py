"""The fragment that completes a prefix, and where its descriptions lie."""

from __future__ import annotations

import json

import pytest

from protocol.appending import append_fragment, covered_tokens, desc_spans, object_entry
from protocol.contracts import GroundTruth, Shape
from protocol.errors import ContractError

CAT = GroundTruth(index=4, desc="cat", shape=Shape("bbox_2d", (1, 2, 3, 4)))
DOG = GroundTruth(index=9, desc='red "big" dog', shape=Shape("poly", (5, 6, 7, 8, 9, 10)))


def test_objects_follow_a_closed_object_behind_a_comma() -> None:
    fragment = append_fragment('{"object_2": {}', [CAT, DOG], 3)
    assert fragment.startswith(', "object_3": {"desc": "cat", "bbox_2d": ["<|coord_1|>", "<|coord_2|>"')
    assert '"object_4": {"desc": "red \\"big\\" dog", "poly": [["<|coord_5|>", "<|coord_6|>"], [' in fragment
    assert list(json.loads('{"object_2": {}' + fragment)) == ["object_2", "object_3", "object_4"]


@pytest.mark.parametrize("prefix", ["{", '{"object_1": {},', '{"object_1": {}, \n'])
def test_no_comma_is_written_where_one_stands_or_none_is_due(prefix: str) -> None:
    assert append_fragment(prefix, [CAT], 2).startswith('"object_2": ')


@pytest.mark.parametrize("prefix", ["{", '{"object_1": {} '])
def test_nothing_to_append_closes_the_list(prefix: str) -> None:
    assert append_fragment(prefix, [], 1) == "}"


@pytest.mark.parametrize("prefix", ["", "  ", '{"object_1"', "[", '{"object_1": {},'])
def test_a_prefix_that_cannot_be_continued_is_refused(prefix: str) -> None:
    with pytest.raises(ContractError, match="prefix"):
        append_fragment(prefix, [], 1)


def test_descs_keep_their_script_and_escape_what_json_must() -> None:
    assert object_entry(1, '猫 "x"\n', CAT.shape).startswith('"object_1": {"desc": "猫 \\"x\\"\\n", ')


def test_every_desc_value_has_its_span_without_quotes() -> None:
    text = append_fragment("{", [CAT, DOG], 1)
    assert [text[start:end] for start, end in desc_spans(text)] == ["cat", 'red \\"big\\" dog']


def test_a_desc_that_quotes_the_word_desc_has_one_span() -> None:
    text = object_entry(1, 'a "desc": "b', CAT.shape)
    assert [text[start:end] for start, end in desc_spans(text)] == ['a \\"desc\\": \\"b']


def test_an_unterminated_desc_has_no_span() -> None:
    assert desc_spans('"desc": "cat') == []


def test_a_piece_that_overlaps_a_span_by_one_character_is_covered() -> None:
    pieces = ['"desc', '": "', "ca", 't",', " x"]
    assert covered_tokens(pieces, desc_spans("".join(pieces))) == [2, 3]


def test_an_empty_span_covers_nothing() -> None:
    assert covered_tokens(["ab", "cd"], [(2, 2)]) == []
