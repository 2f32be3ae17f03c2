"""The reference's payloads: lines of a data file as its trainer presents them, and its ground truth read from them.

The service reads records by `protocol.record_lines`, which is stricter, and has no payload between record and text.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.contracts import GeometryType, GroundTruth, Shape
from protocol.serialization import GEOMETRIES, Ordering, is_bin, sanitize_desc, sort_key
from protocol.vocab import COORD_TOKEN_PATTERN, NUM_BINS, coord_token, coord_value

_KEY = re.compile(r"object_(\d+)")


def payload(truths: Sequence[GroundTruth]) -> dict[str, dict[str, Any]]:
    """`object_1..object_N` in the given order, coordinates as tokens, flat."""
    return {
        f"object_{number}": {
            "desc": truth.desc,
            truth.shape.geometry: [coord_token(bin_) for bin_ in truth.shape.bins],
        }
        for number, truth in enumerate(truths, start=1)
    }


def payload_text(answer: Mapping[str, Mapping[str, Any]]) -> str:
    """JSON of a payload with polygons grouped in pairs; separators `, ` and `: `, non-ASCII kept."""
    grouped = {
        key: {name: _pairs(value) if name == "poly" else value for name, value in entry.items()}
        for key, entry in answer.items()
    }
    return json.dumps(grouped, ensure_ascii=False)


def _pairs(values: Sequence[Any]) -> list[list[Any]]:
    return [list(values[at : at + 2]) for at in range(0, len(values), 2)]


def extract_truths(answer: object) -> tuple[GroundTruth, ...]:
    """The objects of a payload that can be matched, by the number in their key (SPEC 6); anything else is skipped.

    ValueError when there is no payload. Files read through `records` cannot hold what is skipped here.
    """
    if not isinstance(answer, Mapping):
        raise ValueError(
            f"a sample needs a mapping as assistant_payload, got {type(answer).__name__}; build it from a record"
        )
    truths = []
    for key, entry in answer.items():
        match = _KEY.fullmatch(key) if isinstance(key, str) else None
        shape = _payload_shape(entry) if isinstance(entry, Mapping) else None
        if match is not None and shape is not None:
            truths.append(GroundTruth(index=int(match[1]), desc=entry["desc"].strip(), shape=shape))
    return tuple(sorted(truths, key=lambda truth: truth.index))


def _payload_shape(entry: Mapping[str, Any]) -> Shape | None:
    desc = entry.get("desc")
    present = [name for name in GEOMETRIES if entry.get(name) is not None]
    if not isinstance(desc, str) or not desc.strip() or len(present) != 1:
        return None
    values = _flatten(entry[present[0]])
    bins = None if values is None else [_payload_bin(value) for value in values]
    if bins is None or len(bins) % 2 or any(bin_ is None for bin_ in bins):
        return None
    if len(bins) != 4 if present[0] == "bbox_2d" else len(bins) < 6:
        return None
    return Shape(present[0], tuple(bin_ for bin_ in bins if bin_ is not None))


def _flatten(values: object) -> list[Any] | None:
    """A flat list or a list of lists as one flat list."""
    if not isinstance(values, list | tuple):
        return None
    flat: list[Any] = []
    for value in values:
        flat.extend(value) if isinstance(value, list | tuple) else flat.append(value)
    return flat


def _payload_bin(value: object) -> int | None:
    """A token's bin or a rounded number, None outside 0..999."""
    if isinstance(value, str):
        return coord_value(value) if _is_coord_token(value) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= NUM_BINS:
        return None
    rounded = round(value)
    return rounded if 0 <= rounded < NUM_BINS else None


def _is_coord_token(text: str) -> bool:
    match = COORD_TOKEN_PATTERN.fullmatch(text)
    return match is not None and int(match[1]) < NUM_BINS


@dataclass(frozen=True, slots=True, kw_only=True)
class SerializedObject:
    """One object on its way into a payload; without geometry `geometry` is None and `values` empty."""

    desc: str
    geometry: GeometryType | None
    values: tuple[Any, ...]
    """What the payload holds: tokens, or the file's own numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SerializedRecord:
    """A line of a data file as the runbook's trainer presents it to the chat template."""

    objects: tuple[SerializedObject, ...]
    payload: dict[str, dict[str, Any]]
    text: str


def serialize_record(
    record: Mapping[str, Any],
    *,
    coord_tokens: bool = True,
    ordering: Ordering = "sorted",
    rng: random.Random | None = None,
) -> SerializedRecord:
    """Orders, annotates and serialises a line's objects (SPEC 2.4).

    `bbox_2d` wins over `poly`; an object without geometry keeps its desc only; numbers that are no bins stay as they
    are. ValueError: a bad desc, `line` geometry, odd length, a token above 999, tokens without width and height.
    """
    objects = record.get("objects")
    if not isinstance(objects, list):
        raise ValueError(f"objects must be a list, got {type(objects).__name__}; write [] where there are none")
    built = [_serialized(item, record, coord_tokens) for item in objects]
    if ordering == "sorted":
        built.sort(key=_position)
    else:
        (rng or random.Random()).shuffle(built)
    answer: dict[str, dict[str, Any]] = {}
    for number, item in enumerate(built, start=1):
        entry = answer[f"object_{number}"] = {"desc": item.desc}
        if item.geometry is not None:
            entry[item.geometry] = list(item.values)
    return SerializedRecord(objects=tuple(built), payload=answer, text=payload_text(answer))


def user_content(images: Sequence[str], prompt: str) -> list[dict[str, str]]:
    """The user turn: images before text, in training, rollout and evaluation alike (SPEC A15)."""
    return [*({"type": "image", "image": image} for image in images), {"type": "text", "text": prompt}]


def _serialized(item: object, record: Mapping[str, Any], coord_tokens: bool) -> SerializedObject:
    if not isinstance(item, Mapping):
        raise ValueError(f"an object must be a mapping, got {type(item).__name__}; write desc and bbox_2d or poly")
    if item.get("line") is not None or item.get("line_points") is not None:
        raise ValueError("line geometry is not supported; write bbox_2d or poly")
    desc = sanitize_desc(item.get("desc"))
    geometry = next((name for name in GEOMETRIES if item.get(name) is not None), None)
    if geometry is None:
        return SerializedObject(desc=desc, geometry=None, values=())
    values = item[geometry]
    if not isinstance(values, list | tuple):
        raise ValueError(f"{geometry} must be a list, got {type(values).__name__}; write x, y, x, y, ...")
    values = tuple(values)
    if coord_tokens and (any(isinstance(value, str) for value in values) or all(map(is_bin, values))):
        values = _annotate(geometry, values, record)
    return SerializedObject(desc=desc, geometry=geometry, values=values)


def _annotate(geometry: str, values: Sequence[Any], record: Mapping[str, Any]) -> tuple[str, ...]:
    """Bins as tokens, once it is known that the values are bins."""
    for side in ("width", "height"):
        size = record.get(side)
        if isinstance(size, bool) or not isinstance(size, int | float) or not size > 0:
            raise ValueError(f"{side} must be > 0 where coordinates are bins, got {size!r}; add the image's {side}")
    if len(values) % 2:
        raise ValueError(f"{geometry} has {len(values)} values, expected x, y pairs; complete the last pair")
    return tuple(coord_token(coord_value(value) if isinstance(value, str) else round(value)) for value in values)


def _position(item: SerializedObject) -> tuple[float, float]:
    """Sort key; objects without usable geometry come last."""
    last = (float("inf"), float("inf"))
    if item.geometry is None or len(item.values) < 2:
        return last
    try:
        numbers = [float(coord_value(value)) if isinstance(value, str) else float(value) for value in item.values]
    except (TypeError, ValueError):
        return last
    return sort_key(item.geometry, numbers)
