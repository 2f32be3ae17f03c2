"""What counts as equal between an expected value and ours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

RELATIVE = 1e-5
"""Expected floats are float32 results."""
NEAR_ZERO = 1e-7
WALL_CLOCK = "wall clock"
"""Stands for any finite number."""
NOT_COMPARED = frozenset({"error_meaning"})
_NON_FINITE = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


def differences(expected: Any, got: Any, path: str = "") -> Iterator[str]:
    """One line per difference, with the path inside the value; nothing where both are equal."""
    where = path or "value"
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        for key in [*expected, *(key for key in got if key not in expected)]:
            if key in NOT_COMPARED:
                continue
            if key not in got:
                yield f"{path}.{key}: missing, expected {expected[key]!r}"
            elif key not in expected:
                yield f"{path}.{key}: unexpected, got {got[key]!r}"
            else:
                yield from differences(expected[key], got[key], f"{path}.{key}")
    elif isinstance(expected, list) and isinstance(got, list | tuple):
        if len(expected) != len(got):
            yield f"{where}: expected {len(expected)} items {expected!r}, got {len(got)} items {got!r}"
            return
        for at, (left, right) in enumerate(zip(expected, got, strict=True)):
            yield from differences(left, right, f"{path}[{at}]")
    elif not _equal(expected, got):
        yield f"{where}: expected {expected!r}, got {got!r}"


def _equal(expected: Any, got: Any) -> bool:
    if expected == WALL_CLOCK:
        return isinstance(got, int | float) and math.isfinite(got)
    if isinstance(got, float) and isinstance(expected, str) and expected.lower() in _NON_FINITE:
        expected = _NON_FINITE[expected.lower()]
        return got == expected or (math.isnan(got) and math.isnan(expected))
    if isinstance(expected, bool) or isinstance(got, bool):
        return expected is got
    if isinstance(expected, int | float) and isinstance(got, int | float):
        if isinstance(expected, int) and isinstance(got, int):
            return expected == got
        return math.isclose(expected, got, rel_tol=RELATIVE, abs_tol=NEAR_ZERO if expected == 0 else 0.0)
    return bool(expected == got)
