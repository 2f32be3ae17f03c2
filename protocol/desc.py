"""Descriptions compared as words (SPEC 16): normalisation and the exact part of the desc monitor."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

_SEPARATORS = re.compile(r"[_/()\s]+")


@lru_cache(maxsize=16384)
def normalise_desc(desc: str | None) -> str:
    """Lower case; `_`, `/`, parentheses and runs of blanks become one space. `Tool (cabinet)` → `tool cabinet`."""
    return _SEPARATORS.sub(" ", (desc or "").lower()).strip()


class DescCounts(NamedTuple):
    """Counters that add up over segments."""

    total: int
    """Pairs where both descriptions say something."""
    exact: int
    """Pairs where they are equal."""


def count_exact(pairs: Iterable[tuple[str, str]]) -> DescCounts:
    """Compares (predicted, true) descriptions after normalisation."""
    total = exact = 0
    for predicted, true in pairs:
        left, right = normalise_desc(predicted), normalise_desc(true)
        total += bool(left and right)
        exact += bool(left) and left == right
    return DescCounts(total, exact)
