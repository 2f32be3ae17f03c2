"""Targets: complete, valid, labelled exactly, and never cut."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given, settings

from protocol.contracts import Record, Shape
from protocol.errors import ContractError
from protocol.matching import MatchSettings
from protocol.parsing import parse
from protocol.segments import IGNORE_INDEX, SegmentStats
from protocol.targets import PrefixPolicy, Target
from protocol.vocab import TokenCodec
from tests.protocol.checks import SUFFIX_TEXT, check_labels, check_target, make_target
from tests.protocol.codecs import CharCodec, qwen_codec
from tests.protocol.strategies import EXAMPLES, TargetCase, answered, drawn, muddled, record_of

CHAR = CharCodec()
LOOSE = MatchSettings(maskiou_gate=0.0, maskiou_resolution=64)
CAT, DOG = Shape("bbox_2d", (100, 100, 300, 300)), Shape("bbox_2d", (500, 500, 700, 700))
TWO = record_of([("cat", CAT), ("red dog", DOG)])


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn(120).map(answered))
@example(TargetCase("{}", record_of([]), "rollout"))
@example(TargetCase('{"object_2": {"desc": "a", "poly": []}, "object_1": 5', TWO, "rollout"))
def test_every_target_of_a_parseable_rollout_is_valid_complete_and_reads_back(case: TargetCase) -> None:
    check_target(case.text, case.record, CHAR, case.policy, LOOSE)


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn(94).map(muddled))
def test_labels_cover_exactly_the_tail_and_the_end_of_turn_of_any_rollout(case: TargetCase) -> None:
    check_labels(make_target(case.text, case.record, CHAR, case.policy, LOOSE)[2], CHAR)


@settings(max_examples=100, deadline=None)
@given(drawn(120).map(answered))
def test_targets_in_real_byte_pair_tokens_are_labelled_exactly_too(case: TargetCase) -> None:
    codec = qwen_codec()
    check_labels(make_target(case.text, case.record, codec, case.policy, LOOSE)[2], codec)


@settings(max_examples=60, deadline=None)
@given(drawn(94).map(muddled))
@example(TargetCase("[1, 2", TWO, "matched"))
@example(TargetCase("{}", record_of([]), "rollout"))
def test_where_nothing_is_kept_a_taught_row_is_a_whole_answer_and_learns_all_of_it(case: TargetCase) -> None:
    for codec in (CHAR, qwen_codec()):
        untaught = make_target(case.text, case.record, codec, case.policy, LOOSE)[2]
        taught = make_target(case.text, case.record, codec, case.policy, LOOSE, teach_format=True)[2]
        assert untaught.stats.prefix_len > 0, "as the specification has it"
        is_whole = taught.stats.prefix_len == 0
        if case.policy == "matched":
            assert is_whole == (untaught.train_text == "{" + untaught.append_text)
        if is_whole:
            assert untaught.stats.fn_appended == len(case.record.objects), "nothing was kept"
            _check_whole(taught, case.record, codec)
        else:
            assert taught.stats == untaught.stats
            assert _arrays(taught) == _arrays(untaught)


@pytest.mark.parametrize("policy", ["rollout", "matched"])
def test_a_list_in_a_fence_is_taught_as_a_whole_under_either_policy(policy: PrefixPolicy) -> None:
    """As Qwen3-VL answers before it knows the format; what stands before the brace would have no loss."""
    text = '```json\n[\n\t{"bbox_2d": [1, 2, 3, 4], "label": "cat"}\n]\n```'
    _check_whole(make_target(text, TWO, qwen_codec(), policy, LOOSE, teach_format=True)[2], TWO, qwen_codec())


def _check_whole(target: Target, record: Record, codec: TokenCodec) -> None:
    segment, stats = target.segment, target.stats
    assert segment is not None
    assert target.append_text == target.train_text
    assert (stats.prefix_len, stats.tail_ignored, stats.fn_appended) == (0, 0, len(record.objects))
    end = stats.prompt_len + stats.train_len
    assert segment.input_ids[stats.prompt_len : end].tolist() == codec.encode(target.train_text), "as a model writes it"
    read = parse(codec.encode(target.train_text), codec).predictions
    assert [(item.desc, item.shape) for item in read] == [(truth.desc, truth.shape) for truth in record.objects]
    assert list(json.loads(target.train_text)) == [f"object_{truth.index}" for truth in record.objects]
    labelled = np.flatnonzero(segment.labels != IGNORE_INDEX).tolist()
    assert sorted([*labelled, *segment.coord_positions.tolist()]) == list(range(stats.prompt_len, end + 1))
    assert not segment.coord_in_prefix.any()


def _arrays(target: Target) -> list[list[int]]:
    segment = target.segment
    assert segment is not None
    places, bins = segment.coord_positions, segment.coord_bins
    return [each.tolist() for each in (segment.input_ids, segment.labels, places, bins, segment.coord_in_prefix)]


def answer_of(*boxes: tuple[str, Shape], spurious: bool = False) -> str:
    record = record_of(boxes)
    entries = {f"object_{truth.index}": _entry(truth.desc, truth.shape) for truth in record.objects}
    if spurious:
        entries = {"object_9": _entry("x", Shape("bbox_2d", (0, 900, 50, 990)))} | entries
    return json.dumps(entries) + "<|im_end|>"


def _entry(desc: str, shape: Shape) -> dict[str, object]:
    return {"desc": desc, "bbox_2d": [f"<|coord_{bin_}|>" for bin_ in shape.bins]}


def test_a_missing_truth_is_appended_behind_the_highest_key() -> None:
    _, _, target = make_target(answer_of(("cat", CAT), spurious=True), TWO, CHAR, "rollout", MatchSettings())
    assert target.append_text.startswith(', "object_10": {"desc": "red dog"')
    assert (target.stats.matched_for_supervision, target.stats.fn_appended) == (1, 1)


def test_the_matched_policy_drops_spurious_predictions_and_counts_from_one() -> None:
    _, _, target = make_target(answer_of(("cat", CAT), spurious=True), TWO, CHAR, "matched", MatchSettings())
    assert list(json.loads(target.train_text)) == ["object_1", "object_2"]
    assert [entry["desc"] for entry in json.loads(target.train_text).values()] == ["cat", "red dog"]


def test_matched_slots_learn_the_true_bins() -> None:
    shifted = Shape("bbox_2d", (105, 100, 305, 300))
    for policy in ("rollout", "matched"):
        _, _, target = make_target(answer_of(("cat", shifted), spurious=True), TWO, CHAR, policy, MatchSettings())
        segment = target.segment
        assert segment is not None
        assert segment.coord_bins[segment.coord_in_prefix].tolist() == list(CAT.bins)
        places = segment.coord_positions[segment.coord_in_prefix]
        assert [CHAR.coord_bins[int(at)] for at in segment.input_ids[places]] == list(shifted.bins)


def test_the_counters_of_a_target_tell_its_parse_its_match_and_its_row() -> None:
    small = Shape("bbox_2d", (500, 500, 560, 560))  # 0.09 of the dog, below the gate
    entries = {"object_9": _entry("x", Shape("bbox_2d", (0, 900, 50, 990))), "object_1": _entry("cat", CAT)}
    entries |= {"object_2": {"desc": "without a shape"}, "object_3": _entry("dog", small)}
    text = json.dumps(entries)[:-1] + ', "object_4": {"desc'
    parsed, _, target = make_target(text, TWO, CHAR, "rollout", MatchSettings())
    tail, prefix = (len(CHAR.encode(each)) for each in (target.append_text, parsed.prefix_text))
    assert target.stats == SegmentStats(
        gt_objects=2,
        valid_predictions=3,
        matched_pairs=1,
        matched_for_supervision=1,
        fn_appended=1,
        gating_rejections=5,  # all pairs of three and two but one
        matched_maskiou_sum=1.0,
        parse_dropped_invalid=2,
        parse_truncated=1,
        cut_fallback=0,
        prefix_coord_targets=4,
        tail_ignored=len("red dog"),
        prompt_len=len("Q: "),
        rollout_len=len(CHAR.encode(text)),
        prefix_len=prefix,
        train_len=prefix + tail,
        encoded_len=len("Q: ") + prefix + tail + len(CHAR.encode(SUFFIX_TEXT)),
    )
    assert target.appended == (1,)


def test_a_record_without_objects_closes_the_list() -> None:
    for text, expected in (("", "{}"), ("{}<|im_end|>", "{}"), ("nothing here", "{}")):
        _, _, target = make_target(text, record_of([]), CHAR, "rollout", MatchSettings())
        assert target.train_text == expected


def test_an_oversize_target_has_counters_but_no_segment() -> None:
    _, _, fits = make_target("{}", TWO, CHAR, "rollout", MatchSettings())
    length = fits.stats.encoded_len
    _, _, same = make_target("{}", TWO, CHAR, "rollout", MatchSettings(), max_length=length)
    _, _, longer = make_target("{}", TWO, CHAR, "rollout", MatchSettings(), max_length=length - 1)
    assert (same.oversize, longer.oversize, longer.segment) == (False, True, None)
    assert longer.stats == fits.stats


def test_the_end_of_turn_is_supervised_and_what_follows_it_is_not() -> None:
    _, _, target = make_target("{}", TWO, CHAR, "rollout", MatchSettings())
    assert target.segment is not None
    end = target.stats.prompt_len + target.stats.train_len
    assert CHAR.piece(int(target.segment.labels[end])) == "<|im_end|>"
    assert target.segment.labels[end + 1] == IGNORE_INDEX


@pytest.mark.parametrize("suffix", ["", "<|im_end|>\n"])
def test_without_eos_supervision_the_end_of_turn_has_no_label_and_may_be_absent(suffix: str) -> None:
    case = ("{}", TWO, CHAR, "rollout", MatchSettings())
    _, _, target = make_target(*case, suffix=suffix, supervise_eos=False)
    assert target.segment is not None
    end = target.stats.prompt_len + target.stats.train_len
    assert set(target.segment.labels[end:].tolist()) <= {IGNORE_INDEX}
    with pytest.raises(ContractError, match="supervise_eos needs the end-of-turn token"):
        make_target(*case, suffix="")


@pytest.mark.parametrize("desc", ["<|im\\u005fend|>", "a <|image\\u005fpad|>", "half \ufffd"])
def test_a_desc_that_cannot_be_written_has_no_place_in_a_rebuilt_prefix(desc: str) -> None:
    spelt = answer_of(("cat", CAT)).replace('"cat"', f'"{desc}"')
    _, result, target = make_target(spelt, TWO, CHAR, "matched", MatchSettings())
    assert len(result.pairs) == 1
    assert (target.stats.excluded_from_supervision, target.stats.fn_appended) == (1, 2)
    assert list(json.loads(target.train_text)) == ["object_1", "object_2"]


def test_a_match_that_has_no_place_in_the_prefix_is_excluded_and_the_others_are_supervised() -> None:
    spelt = answer_of(("cat", CAT), ("red dog", DOG)).replace('"cat"', '"half \ufffd"')
    _, result, target = make_target(spelt, TWO, CHAR, "matched", MatchSettings())
    stats = target.stats
    assert len(result.pairs) == 2
    assert (stats.matched_for_supervision, stats.excluded_from_supervision, stats.fn_appended) == (1, 1, 1)


@pytest.mark.parametrize("policy", ["rollout", "matched"])
def test_both_policies_end_the_prefix_with_the_tokens_of_a_rollout(policy: PrefixPolicy) -> None:
    codec = qwen_codec()
    _, _, target = make_target(answer_of(("cat", CAT), ("red dog", DOG)), TWO, codec, policy, MatchSettings())
    assert target.segment is not None
    tail = target.segment.input_ids[target.stats.prompt_len + target.stats.prefix_len - 2 :].tolist()
    assert [codec.piece(token_id) for token_id in tail] == ['"]', "}", "}", "<|im_end|>", "\n"]
