"""The strict parser: totality, equality with the plain reading of the specification, rejects and their carets."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import pytest
from hypothesis import example, given, settings

from protocol.contracts import RejectReason, Shape
from protocol.parsing import caret, parse
from protocol.vocab import TokenCodec
from tests.protocol.checks import check_parse, check_prefix, check_rejects
from tests.protocol.codecs import CharCodec, TinyCodec, qwen_codec
from tests.protocol.strategies import EXAMPLES, FEW_EXAMPLES, drawn, mutilated

CHAR, TINY = CharCodec(), TinyCodec(3)
BOX = '"bbox_2d": ["<|coord_1|>", "<|coord_2|>", "<|coord_3|>", "<|coord_4|>"]'


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn(60))
def test_any_token_sequence_parses_as_the_specification_reads_it(raw: bytes) -> None:
    # two of the ids are outside the vocabulary
    check_parse([byte % (TINY.vocabulary_size + 2) - 1 for byte in raw], TINY)


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn(30).map(mutilated))
@example('{"object_1": {"desc": "a", "bbox_2d": ["<|coord_0|>"}, "object_2": {}}')
@example('[{"object_1": {}}, {"object_2": {}}] {"object_3": {}}')
@example('{"object_1": 5 {"desc": "a"}}')
@example('{"object_1": {"bbox_2d": ["<|coord_0|>"}], "object_2": {}}')
def test_any_mutilated_answer_parses_as_the_specification_reads_it(text: str) -> None:
    tiny = TINY.encode(text)
    ids, codec = ((tiny, TINY), (TINY.damage(tiny), TINY), (CHAR.encode(text), CHAR))[len(text) % 3]
    check_parse(ids, codec)


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn(30).map(mutilated))
def test_the_prefix_is_a_token_prefix_up_to_the_last_re_encoded_token(text: str) -> None:
    check_prefix(TINY.encode(text), TINY)


@settings(max_examples=FEW_EXAMPLES, deadline=None)
@given(drawn(30).map(mutilated))
def test_every_reject_names_tokens_of_the_response_and_can_be_shown(text: str) -> None:
    check_rejects(TINY.encode(text), TINY)


def only_reject(text: str, codec: TokenCodec) -> tuple[RejectReason, str]:
    """Reason and the offending text."""
    parsed = parse(codec.encode(text), codec)
    (reject,) = parsed.rejects
    start, end = reject.token_span
    return reject.reason, "".join(codec.piece(token_id) for token_id in parsed.response_ids[start:end].tolist())


@pytest.mark.parametrize(
    ("value", "reason", "offending"),
    [
        ('{"desc": "a", ' + BOX, RejectReason.UNCLOSED, '{"desc": "a", ' + BOX),
        ("{'desc': 1}", RejectReason.INVALID_JSON, "'"),
        ('{"desc": NONE}', RejectReason.INVALID_JSON, "N"),
        (f"[{{{BOX}}}]", RejectReason.NOT_A_MAPPING, "[{"),
        ('{"desc": 3, ' + BOX + "}", RejectReason.DESC, '"desc"'),
        ("{" + BOX + ', "desc": " "}', RejectReason.DESC, '"desc"'),
        ('{"desc": "a"}', RejectReason.GEOMETRY_COUNT, '{"desc": "a"}'),
        ('{"desc": "a", "poly": null, ' + BOX + "}", RejectReason.GEOMETRY_COUNT, '"poly"'),
        ('{"desc": "a", "score": 1, ' + BOX + "}", RejectReason.EXTRA_KEY, '"score"'),
        ('{"desc": "a", "bbox_2d": [1, 2, 3, 4]}', RejectReason.GEOMETRY_FORM, '"bbox_2d"'),
        ('{"desc": "a", "bbox_2d": "x"}', RejectReason.GEOMETRY_FORM, '"bbox_2d"'),
        ('{"desc": "a", "poly": [["<|coord_1|>"]]}', RejectReason.GEOMETRY_FORM, '"poly"'),
        ('{"desc": "a", "bbox_2d": ["<|coord_1|>", "<|coord_2|>"]}', RejectReason.COORD_TOKENS, '"bbox_2d"'),
    ],
)
def test_each_rule_rejects_with_its_reason_under_the_offending_text(
    value: str, reason: RejectReason, offending: str
) -> None:
    closing = "" if reason is RejectReason.UNCLOSED else "}"
    assert only_reject('{"object_1": ' + value + closing, CHAR) == (reason, offending)


def test_coordinates_spelt_in_ordinary_tokens_are_no_coordinates() -> None:
    text = '{"object_1": {"desc": "a", ' + BOX + "}}"
    spelt = [ord(char) for char in text]
    (reject,) = parse(spelt, CHAR).rejects
    assert reject.reason is RejectReason.COORD_TOKENS
    assert "4 values in 0 coordinate tokens" in reject.detail


def test_a_polygon_with_one_point_in_ordinary_tokens_is_rejected() -> None:
    pairs = [f'["<|coord_{bin_}|>", "<|coord_{bin_ + 1}|>"]' for bin_ in range(4)]
    head, spelt, tail = '{"object_1": {"desc": "a", "poly": [', pairs[0], ", " + ", ".join(pairs[1:]) + "]}}"
    ids = [*CHAR.encode(head), *map(ord, spelt), *CHAR.encode(tail)]
    (reject,) = parse(ids, CHAR).rejects
    assert reject.detail == "poly has 8 values in 6 coordinate tokens, expected an even number >= 6, each one token"


def test_a_canonical_answer_gives_its_objects_and_their_token_positions() -> None:
    codec = qwen_codec()
    parsed = parse(codec.encode('{"object_3": {"desc": "black cat", ' + BOX + "}}<|im_end|>\n"), codec)
    (item,) = parsed.predictions
    assert (item.key, item.index, item.desc, item.shape) == (
        "object_3",
        3,
        "black cat",
        Shape("bbox_2d", (1, 2, 3, 4)),
    )
    assert [codec.coord_bins[int(parsed.prefix_ids[at])] for at in item.coord_positions] == [1, 2, 3, 4]
    assert "".join(codec.piece(int(token_id)) for token_id in parsed.response_ids[slice(*item.token_span)]).endswith(
        "}}"
    )
    assert (parsed.max_index, parsed.truncated, parsed.prefix_text[-3:]) == (3, False, '"]}')


def test_a_scalar_under_an_object_key_gives_its_number_but_no_object() -> None:
    parsed = parse(CHAR.encode('{"object_7": 5, "foo": {"desc": "a", ' + BOX + '}, "object_2": {}}'), CHAR)
    assert [item.key for item in parsed.predictions] == []
    assert parsed.max_index == 7
    assert [reject.key for reject in parsed.rejects] == ["object_2"]


def test_a_list_under_an_object_key_is_not_blamed_for_what_stands_under_the_next_key() -> None:
    assert parse(CHAR.encode('{"object_3": [1], "foo": {}}'), CHAR).rejects == ()
    (reject,) = parse(CHAR.encode('{"object_3": [{}], "foo": {}}'), CHAR).rejects
    assert reject.key == "object_3"


def test_an_escaped_object_key_takes_its_number() -> None:
    assert parse(CHAR.encode('{"obj\\u0065ct_4": {}, "object_1": {}}'), CHAR).max_index == 4


def test_what_follows_the_first_top_level_object_is_dropped() -> None:
    parsed = parse(CHAR.encode('{"object_1": {}} {"object_2": {}} "open'), CHAR)
    assert (parsed.prefix_text, parsed.max_index, parsed.truncated) == ('{"object_1": {}', 1, False)


def test_a_token_that_cannot_be_divided_falls_back_to_a_fresh_prefix() -> None:
    parsed = parse(TINY.damage(TINY.encode('{"object_1": {"desc": "a" }}')), TINY)
    assert (parsed.cut_fallback, parsed.prefix_text, parsed.max_index) == (True, "{", None)
    assert parsed.predictions == ()
    assert len(parsed.rejects) == 1


class HalfCharacterCodec:
    """Its second token holds half a character before the end of turn, which no encoding gives back."""

    _PIECES = ('{"object_1": {}', "\ufffd<|im_end|>", "{")
    coord_bins: Mapping[int, int] = MappingProxyType({})

    def encode(self, text: str) -> list[int]:
        return [2]

    def piece(self, token_id: int) -> str:
        return self._PIECES[token_id]


def test_an_end_of_turn_inside_an_indivisible_token_falls_back_too() -> None:
    parsed = parse([0, 1], HalfCharacterCodec())
    assert (parsed.cut_fallback, parsed.prefix_text, parsed.response_ids.tolist()) == (True, "{", [0])


def test_deep_nesting_and_long_runs_cost_linear_time_and_no_stack() -> None:
    for text in (
        "{" * 50_000,
        '{"object_1": ' + "[" * 50_000,
        '{"object_1": {"desc": ' + "[" * 50_000 + "]" * 50_000 + "}}",
    ):
        parsed = parse(CHAR.encode(text), CHAR)
        assert parsed.predictions == ()
    parsed = parse(CHAR.encode('{"object_' + "9" * 5_000 + '": {"desc": ' + "9" * 5_000 + "}}"), CHAR)
    assert parsed.max_index is None


@pytest.mark.parametrize(("opening", "closing"), [('{"a":', "}"), ("[", "]")])
def test_a_closed_value_of_any_depth_is_a_reject_and_no_error(opening: str, closing: str) -> None:
    deep = opening * 50_000 + "1" + closing * 50_000
    (reject,) = parse(CHAR.encode('{"object_1": {"desc": ' + deep + ", " + BOX + "}}"), CHAR).rejects
    assert reject.reason is RejectReason.INVALID_JSON
    assert "nested 50001 deep" in reject.detail


def test_a_coordinate_beyond_the_last_bin_is_no_coordinate_token() -> None:
    """0 to 999; one more would otherwise be named as a wrong number of tokens."""
    for bin_, reason in ((999, None), (1000, RejectReason.GEOMETRY_FORM)):
        box = ", ".join(f'"<|coord_{each}|>"' for each in (1, 2, 3, bin_))
        parsed = parse(CHAR.encode('{"object_1": {"desc": "a" , "bbox_2d": [' + box + "]}}"), CHAR)
        assert [reject.reason for reject in parsed.rejects] == ([reason] if reason else [])


def test_an_integer_too_long_to_convert_is_a_reject_and_no_error() -> None:
    parsed = parse(CHAR.encode('{"object_1": {"desc": ' + "9" * 5_000 + "}}"), CHAR)
    assert [reject.reason for reject in parsed.rejects] == [RejectReason.INVALID_JSON]


def test_a_lone_surrogate_in_a_desc_becomes_the_replacement_character() -> None:
    parsed = parse(CHAR.encode('{"object_1": {"desc": "\\ud800x", ' + BOX + "}}"), CHAR)
    assert [item.desc for item in parsed.predictions] == ["\ufffdx"]


def test_an_answer_that_begins_with_the_end_of_turn_is_empty_whatever_follows() -> None:
    parsed = parse(CHAR.encode('<|im_end|>{"object_1": {"desc": "a", ' + BOX + "}}"), CHAR)
    assert (parsed.response_ids.tolist(), parsed.predictions, parsed.prefix_text) == ([], (), "{")


def test_a_geometry_that_is_said_twice_is_rejected_for_the_tokens_of_both() -> None:
    """JSON reads the last of them alone, which would fit."""
    (reject,) = parse(CHAR.encode('{"object_1": {"desc": "a", ' + BOX + ", " + BOX + "}}"), CHAR).rejects
    assert "bbox_2d has 4 values in 8 coordinate tokens" in reject.detail


def shown(text: str) -> list[str]:
    parsed = parse(CHAR.encode(text), CHAR)
    return caret(parsed, parsed.rejects[0], CHAR).splitlines()


def test_carets_stand_below_the_offending_tokens_within_sixteen_on_either_side() -> None:
    answer, marks, reason = shown('{"object_1": {"desc": "a' + "\n" + '" , ' + BOX + "}}")
    assert answer == r'... _1": {"desc": "a\n" , "bbox_2d": ['
    assert marks == " " * answer.index(r"\n") + "^^"
    assert reason.startswith("object_1: invalid_json: ")
    assert reason.endswith(" (tokens 24..25)")


def test_a_long_reject_is_shown_by_its_beginning() -> None:
    answer, marks, _ = shown('{"object_1": {"desc": "' + "word " * 20 + '", ' + BOX)
    assert answer == '{"object_1": ' + ('{"desc": "' + "word " * 20)[:64] + " ..."
    assert marks == " " * len('{"object_1": ') + "^" * 64
