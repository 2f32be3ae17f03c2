"""Areas about tokens and text: parse, append, desc_mask, desc_norm, coord_tokens, repeat_guard, end_to_end,
evaluate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from protocol.appending import append_fragment, covered_tokens, desc_spans
from protocol.contracts import Completion, GroundTruth, ParsedCompletion, Record, RequestKey
from protocol.desc import count_exact, normalise_desc
from protocol.event_metrics import evaluation_timing
from protocol.labels import IGNORE_INDEX
from protocol.matching import MatchSettings, match
from protocol.metrics import RolloutTotals
from protocol.parsing import parse
from protocol.repeat_guard import KeyCounter, RepeatSettings
from protocol.segments import SegmentStats
from protocol.targets import TargetSettings, build_target
from protocol.vocab import TokenCodec, coord_token, coord_value
from tests.protocol.codecs import CharCodec, ListedCharCodec, qwen_codec
from tests.protocol.golden.answers_shapes import match_settings, to_shape
from tests.protocol.golden.payloads import extract_truths
from tests.protocol.reference import reference_verdict

Case = Mapping[str, Any]

_NEWLINE = "\n"
_PLAIN_PROMPT = "<|im_start|>user\nPROMPT<|im_end|>\n<|im_start|>assistant\n"


def _codec(given: Mapping[str, Any]) -> TokenCodec:
    """The tokenizer a case names; characters get the ids that the case lists for them."""
    if given.get("tokenizer", "").startswith("char"):
        ids = given.get("rollout_token_ids")
        return CharCodec() if ids is None else ListedCharCodec(given["rollout_text"], ids)
    return qwen_codec()


def _text(codec: TokenCodec, ids: Any) -> str:
    return "".join(codec.piece(int(token_id)) for token_id in ids)


def _parse(case: Case) -> dict[str, Any]:
    given = case["input"]
    codec = _codec(given)
    ids = given.get("rollout_token_ids")
    parsed = parse(codec.encode(given["rollout_text"]) if ids is None else ids, codec)
    return {
        "response_text": _text(codec, parsed.response_ids),
        "n_response_tokens": len(parsed.response_ids),
        "prefix_text": parsed.prefix_text,
        "prefix_token_ids": parsed.prefix_ids.tolist(),
        "valid_objects": [
            {
                "key": item.key,
                "index": item.index,
                "desc": item.desc,
                "geom_type": item.shape.geometry,
                "coord_token_indices": list(item.coord_positions),
                "bins": list(item.shape.bins),
            }
            for item in parsed.predictions
        ],
        "dropped_invalid": len(parsed.rejects),
        "dropped_ambiguous": 0,
        "truncated": parsed.truncated,
        "max_object_index_in_prefix": parsed.max_index,
    }


def _append(case: Case) -> dict[str, Any]:
    given = case["input"]
    objects = [
        GroundTruth(index=item["index"], desc=item["desc"], shape=to_shape(item["geom_type"], item["points"]))
        for item in given["fn_objects"]
        # Our records cannot hold a box of another arity; the reference passes over it here (SPEC 9).
        if item["geom_type"] != "bbox_2d" or len(item["points"]) == 4
    ]
    fragment = append_fragment(given["prefix_text"], objects, given["start_index"])
    answer: dict[str, Any] = {"fragment": fragment}
    if "qwen_token_ids" in case["expected"]:
        answer["qwen_token_ids"] = qwen_codec().encode(fragment)
    return answer


def _desc_mask(case: Case) -> dict[str, Any]:
    text = case["input"]["text"]
    codec = qwen_codec()
    ids = codec.encode(text)
    assert ids == case["input"].get("qwen_token_ids", ids), f"our byte-pair encoding differs: {ids}"
    pieces = [codec.piece(token_id) for token_id in ids]
    positions = covered_tokens(pieces, desc_spans("".join(pieces)))
    return {
        "char_spans": [list(span) for span in desc_spans(text)],
        "token_positions": positions,
        "masked_pieces": [pieces[position] for position in positions],
    }


def _desc_norm(case: Case) -> str:
    return normalise_desc(case["input"]["desc"])


def _coord_tokens(case: Case) -> Any:
    """`token_to_int`, the question whether a text is a token, or the other way where a number is given."""
    given = case["input"]
    if "token" not in given:
        return coord_token(next(iter(given.values())))
    if not case["name"].startswith("is_"):
        return coord_value(given["token"])
    try:
        coord_value(given["token"])
    except ValueError:
        return False
    return True


def _repeat_guard(case: Case) -> dict[str, Any]:
    given = case["input"]
    if "rollout_ids" in given:
        counter = KeyCounter()
        for token_id in given["rollout_ids"]:
            counter.feed(qwen_codec().piece(token_id))
        return {"object_keys_counted": counter.count}
    cfg = given["cfg"]
    settings = RepeatSettings(
        **{name: value for name, value in cfg.items() if name in RepeatSettings.__dataclass_fields__}
    )
    counts = [
        _count_pattern(row[cfg["prompt_len"] :], cfg["object_key_prefix_token_ids"]) for row in given["input_ids"]
    ]
    forced = [
        at
        for at, (row, count) in enumerate(zip(given["input_ids"], counts, strict=True))
        if reference_verdict(row, cfg["prompt_len"], count, settings) is not None
    ]
    return {"forced_rows": forced, "object_counts": counts}


def _count_pattern(ids: list[int], pattern: list[int] | None) -> int:
    """Bare ids have no text: each becomes a character, and the pattern a text to count."""
    if not pattern:
        return 0
    counter = KeyCounter(re.compile(re.escape("".join(chr(0x100 + token_id) for token_id in pattern))))
    for token_id in ids:
        counter.feed(chr(0x100 + token_id))
    return counter.count


def _record(payload: Any) -> Record:
    return Record(
        index=0, source="golden", images=("image.jpg",), width=1000, height=1000, objects=extract_truths(payload)
    )


def _completion(prompt_ids: list[int], token_ids: list[int]) -> Completion:
    return Completion(
        key=RequestKey(0),
        prompt_token_ids=np.asarray(prompt_ids, dtype=np.int32),
        token_ids=np.asarray(token_ids, dtype=np.int32),
        finish_reason="stop",
        first_version=0,
        last_version=0,
    )


def _end_to_end(case: Case) -> dict[str, Any]:
    given, codec = case["input"], _codec(case["input"])
    record, cfg = _record(given["gt"]), given["cfg"]
    parsed = parse(codec.encode(given["rollout_text"]), codec)
    result = match(
        [item.shape for item in parsed.predictions], [item.shape for item in record.objects], match_settings(cfg)
    )
    target = build_target(
        record=record,
        completion=_completion(codec.encode(given.get("prompt_text", _PLAIN_PROMPT)), []),
        parsed=parsed,
        match=result,
        suffix_ids=codec.encode("<|im_end|>" + _NEWLINE),
        codec=codec,
        settings=TargetSettings(
            supervise_eos=case.get("settings", {}).get("supervise_eos", True),
            max_length=10**6,
            ot_cost=cfg.get("ot_cost", "l2"),
            ot_epsilon=cfg.get("ot_epsilon", 10.0),
            ot_iters=cfg.get("ot_iters", 30),
        ),
    )
    segment, stats = target.segment, target.stats
    assert segment is not None
    places = list(
        zip(
            segment.coord_positions.tolist(), segment.coord_bins.tolist(), segment.coord_in_prefix.tolist(), strict=True
        )
    )
    in_prefix = [(position - stats.prompt_len, bin_) for position, bin_, is_prefix in places if is_prefix]
    tail_start, tail_end = stats.prompt_len + stats.prefix_len, stats.prompt_len + stats.train_len
    tail_coords = {position for position, _, is_prefix in places if not is_prefix}
    return {
        "train_text": target.train_text,
        "prompt_len": stats.prompt_len,
        "prefix_len": stats.prefix_len,
        "train_len": stats.train_len,
        "encoded_len": stats.encoded_len,
        "rollout_len": stats.rollout_len,
        "fn_count": stats.fn_appended,
        "matched_for_supervision": stats.matched_for_supervision,
        "prefix_coord_pos": [position for position, _ in in_prefix],
        "prefix_coord_target_bins": [bin_ for _, bin_ in in_prefix],
        "tail_ignore_pos": [
            position - tail_start
            for position in range(tail_start, tail_end)
            if segment.labels[position] == IGNORE_INDEX and position not in tail_coords
        ],
        "input_ids": segment.input_ids.tolist(),
        "ce_supervised_pieces": [codec.piece(int(label)) for label in segment.labels if label != IGNORE_INDEX],
        "coord_supervised": [
            {"pos": position, "bin": bin_, "is_prefix": is_prefix} for position, bin_, is_prefix in places
        ],
    }


def _evaluate(case: Case) -> dict[str, float]:
    given, codec = case["input"], CharCodec()
    settings = match_settings(given["cfg"])
    monitor = given["cfg"].get("desc_monitor", {})
    samples = [
        _sample_stats(_record(truths), parse(codec.encode(rollout), codec), settings)
        for truths, rollout in zip(given["gt"], given["rollouts"], strict=True)
    ]
    metrics = RolloutTotals.of(samples).evaluation_metrics(desc_enabled=monitor.get("enabled", False))
    metrics |= evaluation_timing(len(samples), 1, 1.0)
    ours = {"eval_rollout_duplicate_rate", "eval_rollout_samples"}  # A20, and a count beside it
    return {name: value for name, value in metrics.items() if name not in ours}


def _sample_stats(record: Record, parsed: ParsedCompletion, settings: MatchSettings) -> SegmentStats:
    result = match([item.shape for item in parsed.predictions], [item.shape for item in record.objects], settings)
    exact = count_exact(
        (parsed.predictions[pair.prediction].desc, record.objects[pair.ground_truth].desc) for pair in result.pairs
    )
    return SegmentStats(
        gt_objects=len(record.objects),
        valid_predictions=len(parsed.predictions),
        matched_pairs=len(result.pairs),
        gating_rejections=result.gating_rejections,
        matched_maskiou_sum=sum(pair.mask_iou for pair in result.pairs),
        parse_dropped_invalid=len(parsed.rejects),
        parse_truncated=int(parsed.truncated),
        desc_pairs_total=exact.total,
        desc_exact_ok=exact.exact,
    )


AREAS = {
    "parse": _parse,
    "append": _append,
    "desc_mask": _desc_mask,
    "desc_norm": _desc_norm,
    "coord_tokens": _coord_tokens,
    "repeat_guard": _repeat_guard,
    "end_to_end": _end_to_end,
    "evaluate": _evaluate,
}
