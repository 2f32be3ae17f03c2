"""Judges the objects that the scanner found: prediction or reject, with the reason and the tokens (SPEC 5.4)."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from protocol.contracts import GeometryType, Prediction, Reject, RejectReason, Shape
from protocol.pieces import TokenText, piece_table
from protocol.scanner import Scan, ScannedObject
from protocol.serialization import LONE_SURROGATE
from protocol.vocab import NUM_BINS

_COORD_FORM = re.compile(r"<\|coord_([0-9]{1,4})\|>")
_MAX_NESTING = 64
"""Deeper values cannot be objects of ours, and a JSON reader of bounded stack should not see them."""


@dataclass(frozen=True, slots=True)
class _Coordinates:
    """The coordinate tokens of a response, in order."""

    positions: list[int]
    starts: list[int]
    """Characters."""
    bins: list[int]

    @classmethod
    def of(cls, view: TokenText) -> _Coordinates:
        bins = piece_table(view.codec).bins(view.array)
        positions = np.flatnonzero(bins >= 0)
        starts = view.ends[positions] - [len(view.pieces[position]) for position in positions.tolist()]
        return cls(positions.tolist(), starts.tolist(), bins[positions].tolist())

    def captured(self, arrays: Sequence[tuple[int, int]]) -> list[slice]:
        """Those whose token starts inside one of the arrays, as slices (SPEC 5.2)."""
        return [
            slice(bisect_right(self.starts, opening), bisect_right(self.starts, closing)) for opening, closing in arrays
        ]


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A reject before its characters are known as tokens."""

    reason: RejectReason
    detail: str
    span: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Reading:
    """What an accepted object says."""

    desc: str
    shape: Shape
    positions: tuple[int, ...]


def judge(view: TokenText, found: Scan) -> tuple[tuple[Prediction, ...], tuple[Reject, ...]]:
    """Applies SPEC 5.4 to every object, in appearance order."""
    coordinates = _Coordinates.of(view)
    verdicts = [_read_canonical(item, coordinates) or _read(item, view, coordinates) for item in found.objects]
    spans = view.token_spans(
        [
            verdict.span if isinstance(verdict, _Refusal) else (item.start, item.end)
            for item, verdict in zip(found.objects, verdicts, strict=True)
        ],
    )
    predictions, rejects = [], []
    for item, verdict, span in zip(found.objects, verdicts, spans, strict=True):
        if isinstance(verdict, _Refusal):
            rejects.append(Reject(key=item.key, reason=verdict.reason, detail=verdict.detail, token_span=span))
        else:
            predictions.append(
                Prediction(
                    key=item.key,
                    index=item.index,
                    desc=verdict.desc,
                    shape=verdict.shape,
                    coord_positions=verdict.positions,
                    token_span=span,
                )
            )
    return tuple(predictions), tuple(rejects)


def _read_canonical(item: ScannedObject, coordinates: _Coordinates) -> _Reading | None:
    """Reads an object in canonical form; None where only the slow way can tell (or name) what is wrong."""
    if item.canonical is None:
        return None
    desc = item.canonical.desc.strip()
    (tokens,) = coordinates.captured(item.arrays)
    count = tokens.stop - tokens.start
    if not desc or (
        count != 4 if item.canonical.geometry == "bbox_2d" else count < 6 or count != item.canonical.num_values
    ):
        return None
    bins = tuple(coordinates.bins[tokens])
    return _Reading(desc, Shape(item.canonical.geometry, bins), tuple(coordinates.positions[tokens]))


def _read(item: ScannedObject, view: TokenText, coordinates: _Coordinates) -> _Reading | _Refusal:
    """The rules of SPEC 5.4, in order."""
    if item.in_list:
        return _Refusal(RejectReason.NOT_A_MAPPING, "a list stands where an object is due", (item.start, item.end))
    if item.end < 0:
        return _Refusal(RejectReason.UNCLOSED, "the answer ends inside it", (item.start, len(view.text)))
    value, refusal = _load(item, view.text[item.start : item.end])
    if refusal is not None:
        return refusal
    return _read_value(item, value, view.text, coordinates)


def _load(item: ScannedObject, text: str) -> tuple[dict[str, Any], _Refusal | None]:
    if item.nesting > _MAX_NESTING:
        detail = f"nested {item.nesting} deep, at most {_MAX_NESTING} is read"
        return {}, _Refusal(RejectReason.INVALID_JSON, detail, (item.start, item.end))
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        at = min(item.start + error.pos, item.end - 1)
        return {}, _Refusal(RejectReason.INVALID_JSON, error.msg, (at, at + 1))
    except ValueError as error:  # an integer of more digits than Python converts
        return {}, _Refusal(RejectReason.INVALID_JSON, str(error), (item.start, item.end))
    assert isinstance(value, dict)
    return value, None


def _read_value(
    item: ScannedObject, value: dict[str, Any], text: str, coordinates: _Coordinates
) -> _Reading | _Refusal:
    desc = value.get("desc")
    if not isinstance(desc, str) or not desc.strip():
        detail = "desc is missing" if "desc" not in value else f"desc must be text that is not blank, got {desc!r:.40}"
        return _Refusal(RejectReason.DESC, detail, _locate(item, text, "desc"))
    geometries: list[GeometryType] = [name for name in ("bbox_2d", "poly") if name in value]
    if len(geometries) != 1:
        detail = f"exactly one of bbox_2d and poly is due, got {len(geometries)}"
        return _Refusal(RejectReason.GEOMETRY_COUNT, detail, _locate(item, text, *geometries[1:]))
    extra = [name for name in value if name not in ("desc", "bbox_2d", "poly")]
    if extra:
        detail = f"unknown key {extra[0]!r:.40}"
        return _Refusal(RejectReason.EXTRA_KEY, detail, _locate(item, text, extra[0]))
    geometry = geometries[0]
    count, fault = _count_values(value[geometry])
    span = _locate(item, text, geometry)
    if fault:
        return _Refusal(RejectReason.GEOMETRY_FORM, f"{geometry} {fault}", span)
    slices = coordinates.captured(item.arrays)
    positions = tuple(position for part in slices for position in coordinates.positions[part])
    bins = tuple(bin_ for part in slices for bin_ in coordinates.bins[part])
    wanted = "4" if geometry == "bbox_2d" else "an even number >= 6"
    fits = len(bins) == 4 if geometry == "bbox_2d" else len(bins) >= 6
    if not fits or len(bins) != count:
        detail = f"{geometry} has {count} values in {len(bins)} coordinate tokens, expected {wanted}, each one token"
        return _Refusal(RejectReason.COORD_TOKENS, detail, span)
    return _Reading(LONE_SURROGATE.sub("\ufffd", desc.strip()), Shape(geometry, bins), positions)


def _count_values(value: Any) -> tuple[int, str]:
    """Number of values of a flat or paired list of coordinate texts, or what is wrong with it."""
    if not isinstance(value, list):
        return 0, f"must be a list, got {type(value).__name__}"
    if value and all(isinstance(item, list) for item in value):
        if any(len(pair) != 2 for pair in value):
            return 0, "has a point that is not a pair"
        flat = [item for pair in value for item in pair]
    else:
        flat = value
    for item in flat:
        match = _COORD_FORM.fullmatch(item) if isinstance(item, str) else None
        if match is None or int(match[1]) >= NUM_BINS:
            return 0, f"holds {item!r:.40}, which is no coordinate token"
    if len(flat) % 2:
        return 0, f"has {len(flat)} values, an odd number"
    return len(flat), ""


def _locate(item: ScannedObject, text: str, *names: str) -> tuple[int, int]:
    """Characters of the last spelling of a key inside the object; the whole object where it is not spelt plainly."""
    for name in names:
        at = text.rfind(f'"{name}"', item.start, item.end)
        if at >= 0:
            return at, at + len(name) + 2
    return item.start, item.end
