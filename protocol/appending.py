"""The text that completes a prefix: the missing ground truth and the closing brace (SPEC 9), and where its
descriptions lie (SPEC 11)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence

import numpy as np

from protocol.contracts import GroundTruth, Shape
from protocol.errors import ContractError
from protocol.pieces import piece_ends
from protocol.vocab import coord_token

_DESC_VALUE = re.compile(r'"desc"\s*+:\s*+"([^"\\]*+(?:\\.[^"\\]*+)*+)"', re.DOTALL)


def append_fragment(prefix_text: str, objects: Sequence[GroundTruth], first_index: int) -> str:
    """What follows `prefix_text` so that it becomes one JSON object that also holds `objects`.

    Args:
        prefix_text: its last character that is not blank must be `{`, `,` or `}`.
        objects: in this order, numbered from `first_index`.

    Raises:
        ContractError: the prefix ends otherwise, or ends with a comma and there is nothing to append.
    """
    last = prefix_text.rstrip()[-1:]
    if last not in ("{", ",", "}"):
        raise ContractError(
            f"a prefix must end with {{, }} or a comma, got {prefix_text[-20:]!r}; "
            "the parser owes an append-ready prefix, cut it behind a closed object"
        )
    if not objects:
        if last == ",":
            raise ContractError(
                f"the prefix ends with a comma and there is nothing to append, got {prefix_text[-20:]!r}; "
                "cut it before the comma"
            )
        return "}"
    entries = ", ".join(object_entry(first_index + at, item.desc, item.shape) for at, item in enumerate(objects))
    return f"{', ' if last == '}' else ''}{entries}}}"


def object_entry(index: int, desc: str, shape: Shape) -> str:
    """`"object_3": {"desc": "cat", "bbox_2d": ["<|coord_1|>", ...]}`: separators and form as in SPEC 2.4."""
    return (
        f'"object_{index}": {{"desc": {json.dumps(desc, ensure_ascii=False)}, "{shape.geometry}": {_geometry(shape)}}}'
    )


def _geometry(shape: Shape) -> str:
    tokens = [f'"{coord_token(bin_)}"' for bin_ in shape.bins]
    if shape.geometry == "poly":
        tokens = [f"[{x}, {y}]" for x, y in zip(tokens[0::2], tokens[1::2], strict=True)]
    return f"[{', '.join(tokens)}]"


def desc_spans(text: str) -> list[tuple[int, int]]:
    """[start, end) characters of every desc value, quotes excluded; an unterminated one has no span."""
    return [match.span(1) for match in _DESC_VALUE.finditer(text)]


def covered_tokens(pieces: Sequence[str], spans: Iterable[tuple[int, int]]) -> list[int]:
    """Ascending positions of the pieces that overlap a span of their concatenated text.

    Byte-pair encoding may fuse the last character of a desc with its closing quote; such a piece is covered too.
    """
    ends = piece_ends(pieces)
    covered = np.zeros(len(pieces), dtype=np.bool_)
    for start, end in spans:
        if start < end:
            first, last = ends.searchsorted([start, end - 1], side="right").tolist()
            covered[first : last + 1] = True
    positions: list[int] = np.flatnonzero(covered).tolist()
    return positions
