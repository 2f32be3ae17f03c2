"""The properties themselves, as functions of one input: property tests and the fuzzer call the same ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from pycocotools import mask

from protocol.contracts import Completion, MatchResult, ParsedCompletion, Record, RequestKey, Shape
from protocol.exact_area import exact_iou
from protocol.geometry import ShapeTable, mask_iou, overlap_ious, pair_ious, ring_points
from protocol.matching import MatchSettings, match
from protocol.parsing import caret, parse
from protocol.segments import IGNORE_INDEX
from protocol.targets import PrefixPolicy, Target, TargetSettings, build_target
from protocol.vocab import TokenCodec
from tests.protocol.reference import (
    ReferenceParse,
    raster,
    reference_mask_iou,
    reference_match,
    reference_parse,
)

SUFFIX_TEXT = "<|im_end|>\n"


def as_reference(parsed: ParsedCompletion) -> ReferenceParse:
    """The part of our result that the plain reading gives too."""
    return ReferenceParse(
        response_ids=parsed.response_ids.tolist(),
        prefix_ids=parsed.prefix_ids.tolist(),
        prefix_text=parsed.prefix_text,
        max_index=parsed.max_index,
        valid=[
            (item.key, item.index, item.desc, item.shape.geometry, item.coord_positions, item.shape.bins)
            for item in parsed.predictions
        ],
        dropped=len(parsed.rejects),
        truncated=parsed.truncated,
        cut_fallback=parsed.cut_fallback,
    )


def check_parse(ids: list[int], codec: TokenCodec) -> None:
    """Our parser agrees with the specification read character by character."""
    assert as_reference(parse(ids, codec)) == reference_parse(ids, codec)


def check_prefix(ids: list[int], codec: TokenCodec) -> None:
    """The prefix is a token prefix of the rollout; only its last token may be a re-encoded part."""
    parsed = parse(ids, codec)
    prefix = parsed.prefix_ids.tolist()
    assert _text(prefix, codec) == parsed.prefix_text
    common = 0
    while common < min(len(prefix), len(ids)) and prefix[common] == ids[common]:
        common += 1
    part = _text(prefix[common:], codec)
    fresh = parsed.prefix_text == "{"
    assert part == "" or fresh or codec.piece(ids[common]).startswith(part)
    assert all(position < common for item in parsed.predictions for position in item.coord_positions)


def check_rejects(ids: list[int], codec: TokenCodec) -> None:
    """Every reject lies in the response and can be shown with a caret below it."""
    parsed = parse(ids, codec)
    for reject in parsed.rejects:
        start, end = reject.token_span
        assert 0 <= start < end <= len(parsed.response_ids)
        shown, marks, reason = caret(parsed, reject, codec).splitlines()
        assert "^" in marks
        assert len(marks) <= len(shown) + 1
        assert reason.startswith(f"{reject.key}: {reject.reason}: ")


def _text(ids: Sequence[int], codec: TokenCodec) -> str:
    return "".join(codec.piece(token_id) for token_id in ids)


def make_target(
    text: str,
    record: Record,
    codec: TokenCodec,
    policy: PrefixPolicy,
    settings: MatchSettings,
    max_length: int = 10**6,
    suffix: str = SUFFIX_TEXT,
    supervise_eos: bool = True,
    teach_format: bool = False,
) -> tuple[ParsedCompletion, MatchResult, Target]:
    """Parse, match and build, as an actor does."""
    ids = np.asarray(codec.encode(text), dtype=np.int32)
    parsed = parse(ids, codec)
    result = match([item.shape for item in parsed.predictions], [item.shape for item in record.objects], settings)
    completion = Completion(
        key=RequestKey(0),
        prompt_token_ids=np.asarray(codec.encode("Q: "), dtype=np.int32),
        token_ids=ids,
        finish_reason="stop",
        first_version=0,
        last_version=0,
    )
    target = build_target(
        record=record,
        completion=completion,
        parsed=parsed,
        match=result,
        suffix_ids=codec.encode(suffix),
        codec=codec,
        settings=TargetSettings(
            prefix_policy=policy,
            supervise_eos=supervise_eos,
            teach_format=teach_format,
            max_length=max_length,
            ot_iters=2,
        ),
    )
    return parsed, result, target


def check_target(text: str, record: Record, codec: TokenCodec, policy: PrefixPolicy, settings: MatchSettings) -> None:
    """The target of a rollout that is the beginning of valid JSON: valid, complete, and read back as what it says."""
    parsed, result, target = make_target(text, record, codec, policy, settings)
    keys = [key for key, _ in json.loads(target.train_text, object_pairs_hook=list)]
    assert len(set(keys)) == len(keys)
    again = parse(codec.encode(target.train_text), codec)
    assert not again.truncated
    written = [(item.desc, item.shape) for item in again.predictions]
    matched = {pair.ground_truth for pair in result.pairs}
    missing = [truth for at, truth in enumerate(record.objects) if at not in matched]
    kept = [parsed.predictions[pair.prediction] for pair in result.pairs] if policy == "matched" else parsed.predictions
    assert written == [(item.desc, item.shape) for item in (*kept, *missing)]
    check_labels(target, codec)


def check_labels(target: Target, codec: TokenCodec) -> None:
    """Labels and coordinate targets cover exactly the tail plus end of turn, without descriptions."""
    segment, stats = target.segment, target.stats
    assert segment is not None
    ids, bins = segment.input_ids.tolist(), codec.coord_bins
    tail = range(stats.prompt_len + stats.prefix_len, stats.prompt_len + stats.train_len)
    assert _text(ids[stats.prompt_len : tail.stop], codec) == target.train_text
    assert _text(ids[tail.start : tail.stop], codec) == target.append_text
    labelled = {at for at, label in enumerate(segment.labels.tolist()) if label != IGNORE_INDEX}
    coords = set(segment.coord_positions[~segment.coord_in_prefix].tolist())
    ignored = {tail.start + at for at in _spelling_descs(ids[tail.start : tail.stop], target.append_text, codec)}
    assert labelled == (set(tail) - coords - ignored) | {tail.stop}
    assert all(segment.labels[at] == ids[at] for at in labelled)
    assert coords == {at for at in tail if ids[at] in bins}
    assert all(bins[ids[at]] == bin_ for at, bin_ in _targets(segment, in_prefix=False))
    assert len(ignored) == stats.tail_ignored
    assert all(stats.prompt_len <= at < tail.start and ids[at] in bins for at, _ in _targets(segment, in_prefix=True))
    assert stats.matched_for_supervision + stats.fn_appended == stats.gt_objects


def _spelling_descs(ids: Sequence[int], append_text: str, codec: TokenCodec) -> Iterator[int]:
    """Positions of the tokens that hold a character of a description's value."""
    opening, described, start = '"desc": ', set[int](), 0
    while (at := append_text.find(opening, start)) >= 0:
        _, start = json.JSONDecoder().raw_decode(append_text, at + len(opening))
        described.update(range(at + len(opening) + 1, start - 1))
    start = 0
    for at, token_id in enumerate(ids):
        end = start + len(codec.piece(token_id))
        if not described.isdisjoint(range(start, end)):
            yield at
        start = end


def _targets(segment: Any, *, in_prefix: bool) -> list[tuple[int, int]]:
    chosen = segment.coord_in_prefix == in_prefix
    return list(zip(segment.coord_positions[chosen].tolist(), segment.coord_bins[chosen].tolist(), strict=True))


def check_iou(a: Shape, b: Shape, resolution: int) -> None:
    """Mask IoU is pycocotools' own wherever both shapes cover a cell, and the exact area IoU elsewhere (A6)."""
    ours = mask_iou(a, b, resolution)
    expected = reference_mask_iou(a, b, resolution)
    if expected is None:
        assert np.isclose(ours, exact_iou(ring_points(a), ring_points(b)), rtol=1e-9, atol=1e-12)
    else:
        assert ours == expected
    assert np.isclose(ours, mask_iou(b, a, resolution), rtol=1e-12, atol=1e-12)
    assert 0.0 <= ours <= 1.0


def check_match(predictions: list[Shape], truths: list[Shape], settings: MatchSettings) -> None:
    """Candidates, gate and assignment are the specification's, down to the pairs."""
    result = match(predictions, truths, settings)
    ious = _all_ious(predictions, truths, settings)

    def iou(i: int, j: int) -> float:
        return ious[i * len(truths) + j]

    pairs, rejected, _ = reference_match(predictions, truths, settings, iou)
    assert [(pair.prediction, pair.ground_truth) for pair in result.pairs] == pairs
    assert result.gating_rejections == rejected
    for pair in result.pairs:
        assert np.isclose(pair.mask_iou, iou(pair.prediction, pair.ground_truth), rtol=1e-12, atol=1e-12)
    assert sorted([*result.false_positives, *(pair.prediction for pair in result.pairs)]) == list(
        range(len(predictions))
    )
    assert sorted([*result.false_negatives, *(pair.ground_truth for pair in result.pairs)]) == list(range(len(truths)))


def match_value(result: MatchResult, settings: MatchSettings) -> float:
    """What an assignment saves against leaving everything unmatched."""
    return sum(settings.fp_cost + settings.fn_cost - (1.0 - pair.mask_iou) for pair in result.pairs)


def check_truth_order(
    predictions: list[Shape], truths: list[Shape], order: Sequence[int], settings: MatchSettings
) -> None:
    """Reordering the ground truth changes neither the value nor, without ties, the pairs.

    Two truths may tie already as candidates of a prediction; then all are made candidates.
    """
    overlaps = overlap_ious(ShapeTable.of(predictions, 1), ShapeTable.of(truths, 1))
    if any(len(set(row)) < len(truths) for row in overlaps.tolist()):
        settings = replace(settings, candidate_top_k=len(truths))
    straight = match(predictions, truths, settings)
    shuffled = match(predictions, [truths[at] for at in order], settings)
    assert np.isclose(match_value(straight, settings), match_value(shuffled, settings))
    assert straight.gating_rejections == shuffled.gating_rejections
    ious = _all_ious(predictions, truths, settings)
    if len(set(ious)) == len(ious):
        pairs = {(pair.prediction, order[pair.ground_truth]) for pair in shuffled.pairs}
        assert {(pair.prediction, pair.ground_truth) for pair in straight.pairs} == pairs


def _all_ious(predictions: list[Shape], truths: list[Shape], settings: MatchSettings) -> list[float]:
    """Mask IoU of every pair, row by row."""
    left, right = (ShapeTable.of(shapes, settings.maskiou_resolution) for shapes in (predictions, truths))
    rows, columns = np.indices((len(predictions), len(truths))).reshape(2, -1)
    ious: list[float] = pair_ious(left, right, rows, columns).tolist()
    return ious


def check_more_predictions(
    predictions: list[Shape], extra: Shape, truths: list[Shape], settings: MatchSettings
) -> None:
    """One prediction more never lowers the optimal value."""
    before = match_value(match(predictions, truths, settings), settings)
    after = match_value(match([*predictions, extra], truths, settings), settings)
    assert after >= before - 1e-9


def covered_cells(shape: Shape, resolution: int) -> int:
    """Cells of pycocotools' raster."""
    return int(mask.area(raster(shape, resolution)))
