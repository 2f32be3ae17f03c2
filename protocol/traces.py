"""What is kept of one rollout so that its every decision can be looked at later, without its pixels.

An actor makes a `RolloutTrace` where recording is on, and encodes it; the driver writes it, unread, as a line of
`rollouts.jsonl`, where `rollmatch replay`, the report and the monitor dumps find it. A few KB each: the completion's
tokens and what was made of them. The prompt is left out but for its length, because masks and targets do not depend on
its tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from protocol.contracts import (
    Completion,
    GroundTruth,
    IntArray,
    MatchedPair,
    MatchResult,
    ParsedCompletion,
    Record,
    Reject,
    RejectReason,
    RequestKey,
    RolloutRequest,
    Shape,
)
from protocol.segments import SegmentStats


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedPrediction:
    """A valid object as the actor read it."""

    key: str
    desc: str
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutTrace:
    """One answered request."""

    key: RequestKey
    record: Record
    """With its ground truth, in the order in which it was matched."""
    seed: int
    first_version: int
    last_version: int
    finish_reason: str
    prompt_len: int
    token_ids: IntArray
    """[L] the completion as the engine gave it."""
    suffix_ids: tuple[int, ...]
    """What the chat template writes behind the answer."""
    predictions: tuple[TracedPrediction, ...]
    rejects: tuple[Reject, ...]
    pairs: tuple[MatchedPair, ...]
    stats: SegmentStats

    @classmethod
    def of(
        cls,
        request: RolloutRequest,
        completion: Completion,
        parsed: ParsedCompletion,
        match: MatchResult,
        stats: SegmentStats,
        suffix_ids: Sequence[int],
    ) -> RolloutTrace:
        """The trace of an answer, with what was made of it."""
        return cls(
            key=request.key,
            record=request.record,
            seed=request.seed,
            first_version=completion.first_version,
            last_version=completion.last_version,
            finish_reason=completion.finish_reason,
            prompt_len=len(completion.prompt_token_ids),
            token_ids=completion.token_ids,
            suffix_ids=tuple(suffix_ids),
            predictions=tuple(TracedPrediction(key=p.key, desc=p.desc, shape=p.shape) for p in parsed.predictions),
            rejects=parsed.rejects,
            pairs=match.pairs,
            stats=stats,
        )

    @property
    def f1(self) -> float:
        """Of this rollout alone, by matched pairs; 1 where there was nothing to find and nothing was found."""
        total = len(self.predictions) + len(self.record.objects)
        return 2 * len(self.pairs) / total if total else 1.0

    def as_line(self) -> dict[str, Any]:
        """JSON values; inverse of `from_line`."""
        record = self.record
        return {
            "key": str(self.key),
            "source": record.source,
            "images": list(record.images),
            "width": record.width,
            "height": record.height,
            "seed": self.seed,
            "versions": [self.first_version, self.last_version],
            "finish_reason": self.finish_reason,
            "prompt_len": self.prompt_len,
            "token_ids": np.asarray(self.token_ids).tolist(),
            "suffix_ids": list(self.suffix_ids),
            "objects": [{"desc": truth.desc} | _geometry(truth.shape) for truth in record.objects],
            "predictions": [{"key": p.key, "desc": p.desc} | _geometry(p.shape) for p in self.predictions],
            "rejects": [
                {"key": r.key, "reason": r.reason, "detail": r.detail, "span": list(r.token_span)} for r in self.rejects
            ],
            "pairs": [list(pair) for pair in self.pairs],
            "stats": asdict(self.stats),
        }

    def encode(self) -> bytes:
        """`as_line` as one JSON object: how a trace crosses processes that do not look at it."""
        return json.dumps(self.as_line(), ensure_ascii=False).encode()

    @classmethod
    def decode(cls, encoded: bytes) -> RolloutTrace:
        """Inverse of `encode`."""
        return cls.from_line(json.loads(encoded))

    @classmethod
    def from_line(cls, line: Mapping[str, Any]) -> RolloutTrace:
        """Reads what `as_line` gave; KeyError, TypeError or ValueError for anything else."""
        key = RequestKey.parse(line["key"])
        known = {each.name for each in fields(SegmentStats)}
        return cls(
            key=key,
            record=Record(
                index=key.record,
                source=line["source"],
                images=tuple(line["images"]),
                width=line["width"],
                height=line["height"],
                objects=tuple(
                    GroundTruth(index=at, desc=item["desc"], shape=_shape(item))
                    for at, item in enumerate(line["objects"], start=1)
                ),
            ),
            seed=line["seed"],
            first_version=line["versions"][0],
            last_version=line["versions"][1],
            finish_reason=line["finish_reason"],
            prompt_len=line["prompt_len"],
            token_ids=np.asarray(line["token_ids"], dtype=np.int32),
            suffix_ids=tuple(line["suffix_ids"]),
            predictions=tuple(
                TracedPrediction(key=item["key"], desc=item["desc"], shape=_shape(item)) for item in line["predictions"]
            ),
            rejects=tuple(
                Reject(
                    key=item["key"],
                    reason=RejectReason(item["reason"]),
                    detail=item["detail"],
                    token_span=(item["span"][0], item["span"][1]),
                )
                for item in line["rejects"]
            ),
            pairs=tuple(MatchedPair(*pair) for pair in line["pairs"]),
            stats=SegmentStats(**{name: value for name, value in line["stats"].items() if name in known}),
        )


def _geometry(shape: Shape) -> dict[str, list[int]]:
    return {shape.geometry: [int(value) for value in shape.bins]}


def _shape(item: Mapping[str, Any]) -> Shape:
    if "bbox_2d" in item:
        return Shape("bbox_2d", tuple(item["bbox_2d"]))
    return Shape("poly", tuple(item["poly"]))
