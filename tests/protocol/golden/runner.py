"""Runs golden cases through the adapters and reports differences."""

from __future__ import annotations

import builtins
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.protocol.golden import answers_data, answers_packing, answers_rows, answers_shapes, answers_text
from tests.protocol.golden.compare import differences

COMMITTED_CASES = Path(__file__).with_name("cases.json")

Case = Mapping[str, Any]
AREAS: dict[str, Callable[[Case], Any]] = {
    **answers_text.AREAS,
    **answers_shapes.AREAS,
    **answers_rows.AREAS,
    **answers_packing.AREAS,
    **answers_data.AREAS,
}


def load_cases(path: Path, area: str | None = None) -> list[Case]:
    """The cases of a file, all or those of one area."""
    cases: list[Case] = json.loads(path.read_text(encoding="utf-8"))
    return [case for case in cases if area is None or case["area"] == area]


def failures(case: Case) -> list[str]:
    """What is wrong with our answer to one case; empty when it passes."""
    answer = AREAS.get(case["area"])
    if answer is None:
        return [f"area {case['area']!r} is unknown; known are {', '.join(sorted(AREAS))}"]
    expected = case["expected"]
    wanted_error = expected.get("error") if isinstance(expected, Mapping) else None
    try:
        got = answer(case)
    except Exception as error:  # the boundary of the harness: whatever a case raises is its result
        return list(_error_differences(wanted_error, error))
    if wanted_error is not None and not (isinstance(got, Mapping) and "error" in got):
        return [f"expected {wanted_error} ({expected.get('error_meaning', '')}), got {got!r}"]
    return list(differences(expected, got))


def _error_differences(wanted: str | None, error: Exception) -> Iterator[str]:
    if wanted is None or not isinstance(error, getattr(builtins, wanted)):
        yield f"expected {wanted or 'a value'}, raised {type(error).__name__}: {error}"


def report(cases: Sequence[Case]) -> int:
    """Prints a diff per failing case and `N passed, M failed` last; returns M."""
    failed = 0
    for case in cases:
        problems = failures(case)
        failed += bool(problems)
        for problem in problems:
            print(f"{case['id']} ({case.get('name', '')}): {problem}")
    print(f"{len(cases) - failed} passed, {failed} failed")
    return failed
