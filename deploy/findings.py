"""What a check found: one value, and the table it is printed as."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text


class Severity(StrEnum):
    """Only errors keep a run from starting."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


class Finding(NamedTuple):
    """One thing that a check has to say."""

    where: str
    """Dotted path, or `file:line`."""
    message: str
    severity: Severity = Severity.ERROR

    @property
    def is_error(self) -> bool:
        return self.severity is Severity.ERROR

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


def error(where: str, message: str) -> Finding:
    """What keeps the run from starting."""
    return Finding(where, message, Severity.ERROR)


def warning(where: str, message: str) -> Finding:
    """What is probably not meant."""
    return Finding(where, message, Severity.WARNING)


def note(where: str, message: str) -> Finding:
    """What was looked at."""
    return Finding(where, message, Severity.NOTE)


class Findings:
    """Collects findings of one kind and folds what comes too often: the first `shown` each, then a count."""

    def __init__(self, shown: int) -> None:
        self._shown = shown
        self._kept: list[Finding] = []
        self._more = 0

    def add(self, finding: Finding) -> None:
        if len(self._kept) < self._shown:
            self._kept.append(finding)
        else:
            self._more += 1

    def folded(self, where: str) -> list[Finding]:
        """The findings, with one that counts the rest."""
        if not self._more:
            return self._kept
        return [
            *self._kept,
            Finding(where, f"{self._more} more of the same kind are not shown", self._kept[-1].severity),
        ]


def print_findings(findings: Sequence[Finding], *, console: Console | None = None) -> None:
    """Errors first, then warnings, then what was looked at."""
    table = Table(show_header=True, show_lines=False)
    for column in ("", "where", "what, and what to change"):
        table.add_column(column, overflow="fold")
    colours = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "dim"}
    for severity in Severity:
        for finding in _of(findings, severity):
            table.add_row(severity, Text(finding.where), Text(finding.message), style=colours[severity])
    console = console or Console()
    console.print(table)
    counts = ", ".join(f"{len(list(_of(findings, severity)))} {severity}s" for severity in Severity)
    console.print(f"checked: {counts}")


def _of(findings: Sequence[Finding], severity: Severity) -> Iterable[Finding]:
    return (finding for finding in findings if finding.severity is severity)
