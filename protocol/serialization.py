"""The canonical answer (SPEC 2.4): the text of a record's objects, their order, and what a description may hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal, TypeGuard

from protocol.appending import object_entry
from protocol.contracts import GeometryType, GroundTruth
from protocol.vocab import NUM_BINS, SPECIAL_TOKEN

Ordering = Literal["sorted", "random"]
GEOMETRIES: tuple[GeometryType, ...] = ("bbox_2d", "poly")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""Half of a pair: JSON can hold it, and no tokenizer takes it."""
_SPACED_SEPARATOR = re.compile(r" [,/:]|[,/:] |  ")
_INTEGER_TOLERANCE = 1e-6


def sanitize_desc(desc: object) -> str:
    """The stripped description. ValueError when it is no text, blank, or holds what the canonical text cannot
    (SPEC 2.4): a line break or tab, two spaces, a space beside a comma, slash or colon, or a special token's spelling,
    which a tokenizer would read as the token."""
    if not isinstance(desc, str):
        raise ValueError(f"desc must be text, got {type(desc).__name__}; write a short description")
    text = desc.strip()
    if not text:
        raise ValueError("desc is blank; write a short description")
    if any(char in text for char in "\n\r\t"):
        raise ValueError(f"desc {text!r} holds a line break or tab; write it on one line")
    if LONE_SURROGATE.search(text):
        raise ValueError(f"desc {text!r} holds half of a surrogate pair, which is no text; write the whole character")
    special = SPECIAL_TOKEN.search(text)
    if special is not None:
        raise ValueError(f"desc {text!r} spells the special token {special[0]!r}; remove it")
    found = _SPACED_SEPARATOR.search(text)
    if found is not None:
        raise ValueError(f"desc {text!r} holds {found[0]!r} at {found.start()}; write separators without spaces")
    return text


def clean_desc(desc: str) -> str:
    """The nearest text that `sanitize_desc` accepts, for importers: `hot  dog, big` → `hot dog,big`; may be empty."""
    plain = SPECIAL_TOKEN.sub(" ", LONE_SURROGATE.sub("", desc))
    return re.sub(r"\s*([,/:])\s*", r"\1", " ".join(plain.split()))


def sort_key(geometry: GeometryType, values: Sequence[float]) -> tuple[float, float]:
    """(min y, min x); of a box its first corner alone counts."""
    if geometry == "bbox_2d":
        return values[1], values[0]
    return min(values[1::2]), min(values[0::2])


def assistant_text(truths: Sequence[GroundTruth]) -> str:
    """The canonical answer, numbered from 1 in the given order; `{}` without objects (SPEC A23)."""
    entries = (object_entry(number, truth.desc, truth.shape) for number, truth in enumerate(truths, start=1))
    return f"{{{', '.join(entries)}}}"


def is_bin(value: object) -> TypeGuard[int | float]:
    """Whether a number already is a bin: whole within 1e-6, in 0..999."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= NUM_BINS:
        return False
    return 0 <= round(value) < NUM_BINS and abs(value - round(value)) <= _INTEGER_TOLERANCE
