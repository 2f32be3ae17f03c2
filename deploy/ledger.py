"""The proof of what was trained: `ledger.jsonl`, a line per window, in the order of training.

    {"steps": [3, 4], "version": 1, "rollout_versions": [1, 1], "keys": ["record=17/epoch=0/rollout=0", ...]}

A key names a record and the pass over the data that it was drawn in, so a run that trained each owed rollout exactly
once holds each key once. A line is on disk before the checkpoint that covers it; a resume cuts the file back to its
checkpoint (`deploy.history`), so after any crash the ledger equals that of a run that was never stopped.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from actors.loop import TrainedWindow
from protocol.errors import ConfigError

NAME = "ledger.jsonl"


class LedgerLine(NamedTuple):
    """One window."""

    first_step: int
    """From 1."""
    last_step: int
    version: int
    """Weights that the first step trained on top of."""
    rollout_versions: tuple[int, int]
    """Oldest and newest weights that wrote its rollouts."""
    keys: tuple[str, ...]
    """Records in the order in which they were trained."""


class Ledger:
    """Appends to a run's ledger; each line is on disk when `write` returns."""

    def __init__(self, run_dir: Path) -> None:
        self._file = (run_dir / NAME).open("a", encoding="utf-8")

    def write(self, window: TrainedWindow) -> None:
        versions = [v for segment in window.segments for v in (segment.first_version, segment.last_version)]
        line = {
            "steps": [window.first_step, window.last_step],
            "version": window.version,
            "rollout_versions": [min(versions), max(versions)],
            "keys": [str(segment.key) for segment in window.segments],
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Twice is fine."""
        self._file.close()


def read_ledger(run_dir: Path, size: int | None = None) -> list[LedgerLine]:
    """The windows of a run in the first `size` bytes, all of them without, oldest first. ConfigError for a line that is
    none."""
    path = run_dir / NAME
    text = path.read_bytes()[:size].decode() if path.exists() else ""
    return [_line(line, f"{path}:{number}") for number, line in enumerate(text.splitlines(), start=1)]


def check_ledger(windows: Sequence[LedgerLine], *, num_steps: int, num_trained: int) -> None:
    """That the windows cover steps 1 to `num_steps` without a gap and train `num_trained` rollouts, each once.

    Raises ConfigError with the numbers.
    """
    expected = 1
    for window in windows:
        if window.first_step != expected or window.last_step < window.first_step:
            _refuse(f"a window has steps {window.first_step} to {window.last_step} where step {expected} follows")
        expected = window.last_step + 1
    if expected != num_steps + 1:
        _refuse(f"it ends at step {expected - 1}, the checkpoint was written at step {num_steps}")
    counts = Counter(key for window in windows for key in window.keys)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        _refuse(f"{len(twice)} rollouts were trained more than once, the first is {twice[0]}")
    if counts.total() != num_trained:
        _refuse(f"it holds {counts.total()} trained rollouts, the checkpoint {num_trained}")


def _refuse(problem: str) -> None:
    raise ConfigError(
        f"training.resume: {NAME} does not fit the checkpoint: {problem}; put the ledger of the run that wrote the "
        "checkpoint beside it, or start anew from the checkpoint's merged/ folder"
    )


def _line(text: str, where: str) -> LedgerLine:
    try:
        values: dict[str, Any] = json.loads(text)
        (first, last), (oldest, newest) = values["steps"], values["rollout_versions"]
        return LedgerLine(first, last, values["version"], (oldest, newest), tuple(values["keys"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"training.resume: {where} is no line of a ledger ({error}); restore the file") from error
