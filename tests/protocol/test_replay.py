"""A recorded rollout reads back as it was, and running it again gives the decisions that were made."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from protocol.contracts import Completion, GroundTruth, Record, RequestKey, RolloutRequest, Shape
from protocol.matching import MatchSettings, match
from protocol.parsing import parse
from protocol.replay import Answer, Mask, Replay, replay
from protocol.segments import Segment
from protocol.serialization import assistant_text
from protocol.targets import TargetSettings, build_target
from protocol.traces import RolloutTrace
from protocol.vocab import END_OF_TURN
from tests.protocol.codecs import CharCodec

CAT = GroundTruth(index=1, desc="red circle", shape=Shape("bbox_2d", (100, 100, 300, 300)))
DOG = GroundTruth(index=2, desc="blue bar", shape=Shape("poly", (500, 500, 700, 700, 500, 700)))
NEAR = GroundTruth(index=1, desc="red circle", shape=Shape("bbox_2d", (105, 100, 305, 300)))
FAR = GroundTruth(index=2, desc="ghost", shape=Shape("bbox_2d", (900, 900, 990, 990)))
CODEC = CharCodec()
SUFFIX = CODEC.encode(END_OF_TURN + "\n")
RECORD = Record(index=17, source="t:18", images=("x.png",), width=8, height=8, objects=(CAT, DOG))
BROKEN = ', "object_3": {"desc": "", "bbox_2d": [1, 2]}}'


def answer(*objects: GroundTruth, more: str = "}") -> list[int]:
    return CODEC.encode(assistant_text(objects)[:-1] + more + END_OF_TURN)


def again(
    ids: list[int], max_length: int = 4096, gate: float = 0.3, policy: str = "rollout", record: Record = RECORD
) -> Replay:
    ids_ = np.asarray(ids, dtype=np.int32)
    return replay(
        Answer(key=RequestKey(17), record=record, token_ids=ids_, prompt_len=5, suffix_ids=tuple(SUFFIX)),
        CODEC,
        matching=MatchSettings(maskiou_gate=gate),
        target=TargetSettings(max_length=max_length, prefix_policy=policy),  # type: ignore[arg-type]
    )


def test_every_candidate_pair_says_whether_it_passed_the_gate_and_was_assigned() -> None:
    seen = again(answer(NEAR, FAR))
    decisions = {(c.prediction, c.ground_truth): (c.passed, c.assigned) for c in seen.candidates}
    assert decisions == {(0, 0): (True, True), (0, 1): (False, False), (1, 0): (False, False), (1, 1): (False, False)}
    assert seen.candidates[0].mask_iou == seen.match.pairs[0].mask_iou
    assert sum(not c.passed for c in seen.candidates) == seen.match.gating_rejections
    assert seen.appended == (DOG,)


def test_another_gate_gives_another_decision() -> None:
    assert len(again(answer(NEAR)).match.pairs) == 1
    strict = again(answer(NEAR), gate=0.999)
    assert (strict.match.pairs, strict.appended) == ((), (CAT, DOG))
    same = again(answer(CAT), gate=1.0)
    assert [(c.passed, c.assigned) for c in same.candidates] == [(True, True), (False, False)], "a gate lets its own in"


def test_masks_are_those_of_the_trained_segment() -> None:
    ids = answer(NEAR, FAR)
    parsed = parse(ids, CODEC)
    matched = match([p.shape for p in parsed.predictions], [t.shape for t in RECORD.objects], MatchSettings())
    completion = Completion(
        key=RequestKey(17),
        prompt_token_ids=np.arange(5, dtype=np.int32),
        token_ids=np.asarray(ids, dtype=np.int32),
        finish_reason="stop",
        first_version=0,
        last_version=0,
    )
    trained = build_target(
        record=RECORD,
        completion=completion,
        parsed=parsed,
        match=matched,
        suffix_ids=SUFFIX,
        codec=CODEC,
        settings=TargetSettings(max_length=4096),
    ).segment
    assert isinstance(trained, Segment)
    tokens = again(ids).tokens
    assert len(tokens) == len(trained.input_ids) - trained.prompt_len
    ce = [at + trained.prompt_len for at, token in enumerate(tokens) if token.mask is Mask.CE]
    assert ce == np.flatnonzero(trained.labels != -100).tolist()
    coords = {at + trained.prompt_len: token.bin for at, token in enumerate(tokens) if token.mask is Mask.COORD}
    assert coords == dict(zip(trained.coord_positions.tolist(), trained.coord_bins.tolist(), strict=True))


def test_words_of_an_appended_desc_are_ignored_and_the_rollout_is_context() -> None:
    tokens = again(answer(NEAR, FAR)).tokens
    assert "".join(t.text for t in tokens if t.mask is Mask.IGNORED) == "blue bar\n"
    assert "ghost" in "".join(t.text for t in tokens if t.mask is Mask.CONTEXT)
    assert tokens[-2].text == END_OF_TURN
    assert tokens[-2].mask is Mask.CE


def test_a_target_that_is_too_long_is_still_shown() -> None:
    seen = again(answer(NEAR), max_length=20)
    assert seen.target.oversize
    assert seen.target.segment is None
    whole = again(answer(NEAR))
    assert seen.tokens == whole.tokens
    assert seen.text == whole.text == assistant_text([NEAR])
    fits = 5 + len(whole.tokens)
    assert [again(answer(NEAR), max_length=most).target.oversize for most in (fits, fits - 1)] == [False, True]


@pytest.mark.parametrize("ids", [[], CODEC.encode("nothing here"), CODEC.encode('{"object_1": {"desc"')])
def test_an_unusable_rollout_is_shown_with_everything_appended(ids: list[int]) -> None:
    seen = again(ids)
    assert seen.candidates == ()
    assert seen.appended == (CAT, DOG)
    assert seen.f1 == 0.0


def test_where_nothing_is_to_be_found_only_an_empty_answer_is_right() -> None:
    empty = replace(RECORD, objects=())
    assert [again(answer(*found), record=empty).f1 for found in ((), (CAT,))] == [1.0, 0.0]


def test_duplicates_are_counted_in_what_the_target_says_of_itself() -> None:
    seen = again(answer(NEAR, replace(NEAR, index=2)))
    assert seen.duplicates == seen.target.stats.duplicates == 1


def test_a_trace_reads_back_from_json_as_it_was() -> None:
    ids = answer(NEAR, FAR, more=BROKEN)
    parsed = parse(ids, CODEC)
    matched = match([p.shape for p in parsed.predictions], [t.shape for t in RECORD.objects], MatchSettings())
    completion = Completion(
        key=RequestKey(17),
        prompt_token_ids=np.arange(5, dtype=np.int32),
        token_ids=np.asarray(ids, dtype=np.int32),
        finish_reason="stop",
        first_version=3,
        last_version=4,
    )
    request = RolloutRequest(key=RequestKey(17), record=RECORD, seed=9)
    stats = again(ids).target.stats
    trace = RolloutTrace.of(request, completion, parsed, matched, stats, SUFFIX)
    line = json.loads(json.dumps(trace.as_line()))
    line["stats"]["counted_by_another_version"] = 1
    read = RolloutTrace.from_line(line)
    assert read.as_line() == trace.as_line()
    assert read.record == RECORD
    assert (read.stats, read.pairs, read.rejects, read.predictions) == (
        stats,
        trace.pairs,
        trace.rejects,
        trace.predictions,
    )
    assert [reject.reason for reject in read.rejects] == ["desc"]
    assert read.f1 == again(read.token_ids.tolist()).f1 == 0.5
    assert replace(read, predictions=(), pairs=(), record=replace(RECORD, objects=())).f1 == 1.0
