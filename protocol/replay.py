"""One rollout once more: parse → match → target, with every decision kept for a person to look at.

Pure like the parts that it calls; the actor runs the same functions, so what is seen here is what was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

import numpy as np

from protocol.contracts import (
    Completion,
    GroundTruth,
    IntArray,
    MatchResult,
    ParsedCompletion,
    Record,
    RequestKey,
    Shape,
)
from protocol.matching import MatchSettings, compare_candidates, count_duplicates, match
from protocol.parsing import parse
from protocol.pieces import piece_table
from protocol.segments import IGNORE_INDEX, Segment
from protocol.targets import Target, TargetSettings, build_target
from protocol.traces import RolloutTrace
from protocol.vocab import TokenCodec

_NO_LIMIT = 2**31
_KEY = re.compile(r'"(object_[0-9]+)": \{"desc": ')


class Mask(StrEnum):
    """What a position of the target learns."""

    CONTEXT = "context"
    """Prefix: read, not learnt."""
    COORD = "coord"
    """Coordinate loss."""
    CE = "ce"
    """Cross-entropy."""
    IGNORED = "ignored"
    """Appended without loss: words of a desc, and what stands behind the end of turn."""

    @property
    def words(self) -> str:
        """For a legend."""
        return _WORDS[self]


_WORDS = {
    Mask.CONTEXT: "context: read, not learnt",
    Mask.COORD: "coordinate loss (→ bin where it differs)",
    Mask.CE: "cross-entropy",
    Mask.IGNORED: "ignored: appended without loss",
}


@dataclass(frozen=True, slots=True)
class TargetToken:
    """One token of the answer's part of the row."""

    text: str
    mask: Mask
    bin: int | None = None
    """Target bin of a coordinate; it differs from the token's own in a matched prefix slot."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pair that was compared."""

    prediction: int
    ground_truth: int
    mask_iou: float
    passed: bool
    """At or above the gate."""
    assigned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """Every decision about one completion."""

    key: RequestKey
    record: Record
    pieces: tuple[str, ...]
    """Text of each token of the completion, up to the end of turn."""
    parsed: ParsedCompletion
    candidates: tuple[Candidate, ...]
    match: MatchResult
    target: Target
    appended: tuple[GroundTruth, ...]
    appended_keys: dict[int, str]
    """Position of an appended ground truth → its `object_N` in the target."""
    tokens: tuple[TargetToken, ...]
    """Prefix, tail and chat suffix; the prompt is left out."""
    duplicates: int

    @property
    def text(self) -> str:
        """The completion, up to the end of turn."""
        return "".join(self.pieces)

    @property
    def f1(self) -> float:
        """By matched pairs; 1 where there was nothing to find and nothing was found."""
        total = len(self.parsed.predictions) + len(self.record.objects)
        return 2 * len(self.match.pairs) / total if total else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is replayed, where no run recorded it: the part of a `RolloutTrace` that a replay needs."""

    key: RequestKey
    record: Record
    token_ids: IntArray
    """[L] the completion, without the prompt."""
    prompt_len: int
    """Tokens of the prompt; it counts towards `TargetSettings.max_length` only."""
    suffix_ids: tuple[int, ...]
    """End-of-turn and what follows it."""


def replay(answer: Answer | RolloutTrace, codec: TokenCodec, matching: MatchSettings, target: TargetSettings) -> Replay:
    """Runs one completion through parse, match and target again."""
    parsed, record = parse(answer.token_ids, codec), answer.record
    shapes, truths = [p.shape for p in parsed.predictions], [t.shape for t in record.objects]
    matched, duplicates = match(shapes, truths, matching), count_duplicates(parsed.predictions)
    build = partial(
        build_target,
        record=record,
        completion=Completion(
            key=answer.key,
            prompt_token_ids=np.full(max(1, answer.prompt_len), -1, dtype=np.int32),
            token_ids=answer.token_ids,
            finish_reason="",
            first_version=0,
            last_version=0,
        ),
        parsed=parsed,
        match=matched,
        suffix_ids=answer.suffix_ids,
        codec=codec,
        duplicates=duplicates,
    )
    built = build(settings=target)
    row = built.segment or build(settings=replace(target, max_length=_NO_LIMIT)).segment
    assert row is not None, "only its length keeps a target from being built"
    return Replay(
        key=answer.key,
        record=record,
        pieces=tuple(piece_table(codec).pieces(parsed.response_ids.tolist())),
        parsed=parsed,
        candidates=_candidates(shapes, truths, matching, matched),
        match=matched,
        target=built,
        appended=tuple(record.objects[at] for at in built.appended),
        appended_keys=dict(zip(built.appended, _KEY.findall(built.append_text), strict=True)),
        tokens=mark_tokens(row, built.stats.prefix_len, codec),
        duplicates=duplicates,
    )


def _candidates(
    shapes: Sequence[Shape], truths: Sequence[Shape], matching: MatchSettings, matched: MatchResult
) -> tuple[Candidate, ...]:
    pairs = {(pair.prediction, pair.ground_truth) for pair in matched.pairs}
    compared = (each.tolist() for each in compare_candidates(shapes, truths, matching))
    return tuple(
        Candidate(a, b, iou, iou >= matching.maskiou_gate, (a, b) in pairs) for a, b, iou in zip(*compared, strict=True)
    )


def mark_tokens(segment: Segment, prefix_len: int, codec: TokenCodec) -> tuple[TargetToken, ...]:
    """The answer's part of a row, token by token, with what each learns."""
    start = segment.prompt_len
    bins = dict(zip(segment.coord_positions.tolist(), segment.coord_bins.tolist(), strict=True))
    pieces = piece_table(codec).pieces(segment.input_ids[start:].tolist())
    labels = segment.labels[start:].tolist()
    marked = []
    for at, (piece, label) in enumerate(zip(pieces, labels, strict=True)):
        bin_ = bins.get(start + at)
        if bin_ is not None:
            mask = Mask.COORD
        elif label != IGNORE_INDEX:
            mask = Mask.CE
        else:
            mask = Mask.CONTEXT if at < prefix_len else Mask.IGNORED
        marked.append(TargetToken(piece, mask, bin_))
    return tuple(marked)
