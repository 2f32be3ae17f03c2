"""What is asked and answered, in the order in which a datum lives: Record, RolloutRequest, Completion,
ParsedCompletion, MatchResult. What is trained on comes after these, in `segments`; what a publish carries is in
`weights`.

Arrays are numpy (measured 5x cheaper to put and 30x cheaper to get than lists through the object store). Token ids
are int32. Nothing here validates: the producer named in each docstring does, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

GeometryType = Literal["bbox_2d", "poly"]
IntArray = npt.NDArray[np.int32]

EVALUATION_EPOCH = -1
"""Epoch of a request that evaluates: never trained on, so in no training epoch."""


class Shape(NamedTuple):
    """Geometry on the norm1000 grid, e.g. `Shape("bbox_2d", (100, 100, 300, 300))`."""

    geometry: GeometryType
    bins: tuple[int, ...]
    """Flat x, y, x, y, ...: exactly 4 values (x1, y1, x2, y2) for a bbox_2d, an even number >= 6 for a poly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroundTruth:
    """One annotated object. Built by `records`, never re-validated."""

    index: int
    """1-based position in the payload (`object_<index>`)."""
    desc: str
    shape: Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One line of the data set; `objects` are in payload order and may be empty."""

    index: int
    """0-based row in the file."""
    source: str
    """`train.jsonl:18`: where a person finds it (1-based line)."""
    images: tuple[str, ...]
    """Absolute paths; exactly one for rollouts."""
    width: int
    height: int
    objects: tuple[GroundTruth, ...]


class RequestKey(NamedTuple):
    """Names one owed rollout; renders as `record=17/epoch=0/rollout=0`."""

    record: int
    epoch: int = 0
    rollout: int = 0

    def __str__(self) -> str:
        return f"record={self.record}/epoch={self.epoch}/rollout={self.rollout}"

    @property
    def evaluates(self) -> bool:
        """Of a request whose answer is judged and not trained on."""
        return self.epoch == EVALUATION_EPOCH

    @classmethod
    def parse(cls, text: str) -> RequestKey:
        """Inverse of `str`; ValueError when the text has another form."""
        try:
            parts = dict(part.split("=", 1) for part in text.split("/"))
            return cls(int(parts["record"]), int(parts.get("epoch", 0)), int(parts.get("rollout", 0)))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{text!r} is no request key; write record=17/epoch=0/rollout=0") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRequest:
    """What the controller asks of an actor. The engine sees only image and prompt, never the objects."""

    key: RequestKey
    record: Record
    seed: int
    """Per-request sampling seed: a rerun of the record gives the same rollout."""
    min_version: int = 0
    """Oldest policy version that may answer."""
    traced: bool = True
    """Its outcome carries a trace, where the actor makes any."""

    @property
    def evaluates(self) -> bool:
        """Answered with statistics only, no segment."""
        return self.key.evaluates

    @property
    def source(self) -> str:
        """Where a person finds its record."""
        return self.record.source

    def read(self) -> RolloutRequest:
        """Itself: its record was read before; see `unread.UnreadRequest`."""
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an engine answered, before anyone looked at it."""

    key: RequestKey
    prompt_token_ids: IntArray
    """[P] with image tokens expanded, as the engine used them."""
    token_ids: IntArray
    """[L] without the prompt; may end with the end-of-turn token."""
    finish_reason: str
    """`stop` or `length`."""
    first_version: int
    last_version: int
    """Policy versions of the first and the last generated token, as the engine reports them."""
    repeat_terminated: bool = False
    """The repeat guard forced the end-of-turn token."""


class RejectReason(StrEnum):
    """Why an object under an `object_N` key is not a prediction (SPEC 5.4, in the order of its rules)."""

    UNCLOSED = "unclosed"
    INVALID_JSON = "invalid_json"
    NOT_A_MAPPING = "not_a_mapping"
    DESC = "desc"
    GEOMETRY_COUNT = "geometry_count"
    EXTRA_KEY = "extra_key"
    GEOMETRY_FORM = "geometry_form"
    COORD_TOKENS = "coord_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """One rejected object; `token_span` points into the response's token ids."""

    key: str
    reason: RejectReason
    detail: str
    token_span: tuple[int, int]
    """[start, end) of the offending tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One strictly valid predicted object."""

    key: str
    index: int
    desc: str
    shape: Shape
    """Bins as decoded from the coordinate tokens."""
    coord_positions: tuple[int, ...]
    """Token index of each bin; the same in response and prefix."""
    token_span: tuple[int, int]
    """[start, end) of the object's value in the response."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedCompletion:
    """A completion read strictly (SPEC 5): nothing was repaired."""

    response_ids: IntArray
    """[R] up to the first end-of-turn token."""
    prefix_ids: IntArray
    """[X] what stays: the response up to the last closed object (its last token re-encoded when cut inside)."""
    prefix_text: str
    max_index: int | None
    """Largest `object_N` over every top-level key kept in the prefix, valid or not (SPEC A1)."""
    predictions: tuple[Prediction, ...]
    rejects: tuple[Reject, ...]
    truncated: bool
    """The JSON structure was open at the end."""
    cut_fallback: bool = False
    """The cut token did not survive a round trip and the prefix fell back to `{` (SPEC A4)."""


class MatchedPair(NamedTuple):
    prediction: int
    ground_truth: int
    mask_iou: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MatchResult:
    """`len(pairs) + len(false_positives)` counts predictions, `len(pairs) + len(false_negatives)` ground truths."""

    pairs: tuple[MatchedPair, ...]
    """In prediction order."""
    false_negatives: tuple[int, ...]
    """Ground-truth positions without a prediction, ascending."""
    false_positives: tuple[int, ...]
    gating_rejections: int
    """Candidate pairs below the maskIoU gate."""
