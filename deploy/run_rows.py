"""The numbers of `metrics.jsonl`, of as many steps as there may be: eight bytes each, and every name once."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping
from typing import Any

from deploy.health_numbers import without_empty_shares


class Row(Mapping[str, float]):
    """The numbers of a line."""

    __slots__ = ("_at", "_values")

    def __init__(self, at: Mapping[str, int], values: array[float]) -> None:
        """`at`: each name's place in `values`; lines of the same names share it."""
        self._at, self._values = at, values

    def __getitem__(self, name: str) -> float:
        return self._values[self._at[name]]

    def get(self, name: str, default: Any = None) -> Any:
        """As everywhere, without an exception where the name is not there: charts ask 30,000 rows."""
        at = self._at.get(name)
        return default if at is None else self._values[at]

    def __contains__(self, name: object) -> bool:
        return name in self._at

    def __iter__(self) -> Iterator[str]:
        return iter(self._at)

    def __len__(self) -> int:
        return len(self._at)


class RunRows:
    """Rows of optimizer steps and of evaluations; of a step that was repeated after a crash, the later."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, ...], dict[str, int]] = {}
        self._steps: dict[float, Row] = {}
        self._evaluations: dict[float, Row] = {}

    def append(self, line: Mapping[str, Any]) -> None:
        """Takes a line in; numbers that are not finite stand in the file as text."""
        numbers = without_empty_shares({name: float(value) for name, value in line.items()})
        names = tuple(numbers)
        if names not in self._places:
            self._places[names] = {name: at for at, name in enumerate(names)}
        row = Row(self._places[names], array("d", numbers.values()))
        if "loss/total" in row or "rollout/segments" in row:
            self._steps[row["step"]] = row
        if "eval_rollout_f1" in row:
            self._evaluations[row["step"]] = row

    @property
    def steps(self) -> list[Row]:
        """In order."""
        return [self._steps[step] for step in sorted(self._steps)]

    @property
    def evaluations(self) -> list[Row]:
        """In order."""
        return [self._evaluations[step] for step in sorted(self._evaluations)]
