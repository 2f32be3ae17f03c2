"""`rollouts.jsonl`: the newest training rollouts of a run, a line each, for replay, report and live view.

    runs/demo/rollouts.jsonl        {"step": 12, "time": ..., "actor": "actor-0", "latency_s": 0.8, "key": ..., ...}
    runs/demo/rollouts.older.jsonl  what stood there before, while both are within `rollout.record_bytes`
    runs/demo/evaluations.jsonl     the same of the first validation records at each evaluation, or of all of them in
                                    the folder that `rollmatch evaluate --output` writes

`step` is the number of optimizer steps done when the rollout arrived. A key that is there twice was rolled out twice
(a resume); the later line counts.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO

from actors.outcome import Outcome
from protocol.contracts import RequestKey
from protocol.errors import ConfigError
from protocol.traces import RolloutTrace

NAME = "rollouts.jsonl"
OLDER = "rollouts.older.jsonl"
EVALUATIONS = "evaluations.jsonl"


@dataclass(frozen=True, kw_only=True)
class RecordedRollout:
    """A line of the file."""

    step: int
    time: float
    """Unix seconds of its arrival."""
    actor: str
    latency_s: float
    """From the engine's queue to the last token."""
    encoded: bytes
    """The trace as its actor encoded it: most rollouts are written and never looked at."""

    @classmethod
    def of(cls, outcome: Outcome, step: int) -> RecordedRollout:
        """An outcome that carries a trace, as it arrives now."""
        assert outcome.trace is not None, "only traced outcomes are recorded"
        now = time.time()
        return cls(step=step, time=now, actor=outcome.actor, latency_s=outcome.latency_s, encoded=outcome.trace)

    @cached_property
    def trace(self) -> RolloutTrace:
        """Decoded at the first look."""
        return RolloutTrace.decode(self.encoded)

    def as_line(self) -> bytes:
        """One JSON object: what is known here, then the trace."""
        own = {"step": self.step, "time": self.time, "actor": self.actor, "latency_s": self.latency_s}
        return json.dumps(own).encode()[:-1] + b", " + self.encoded[1:] + b"\n"


class RolloutFile:
    """Appends, and starts a new file when half of `max_bytes` is full: the newest half is always there."""

    def __init__(self, run_dir: Path, max_bytes: int) -> None:
        self._path = run_dir / NAME
        self._older = run_dir / OLDER
        self._half = max_bytes // 2

    def append(self, rollouts: list[RecordedRollout]) -> None:
        """Writes the lines behind those that are there."""
        lines = b"".join(rollout.as_line() for rollout in rollouts)
        if self._path.exists() and self._path.stat().st_size + len(lines) > self._half:
            self._path.replace(self._older)
        _append(self._path, lines)


def append_evaluated(run_dir: Path, rollouts: Sequence[RecordedRollout]) -> None:
    """Writes answers of an evaluation into a run's folder."""
    _append(run_dir / EVALUATIONS, b"".join(rollout.as_line() for rollout in rollouts))


def _append(path: Path, lines: bytes) -> None:
    """Behind the last whole line; what an earlier write left half done is cut off."""
    with path.open("a+b") as file:
        _cut_to_whole_lines(file)
        file.write(lines)


def _cut_to_whole_lines(file: IO[bytes]) -> None:
    end = file.seek(0, os.SEEK_END)
    if not end:
        return
    file.seek(end - 1)
    if file.read(1) != b"\n":
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)


def read_rollouts(run_dir: Path, names: Sequence[str] = (OLDER, NAME)) -> Iterator[RecordedRollout]:
    """All recorded rollouts of these files, oldest first; none where the run recorded none.

    A last line without its end is being written, or its writer is gone, and is left out. ConfigError for any other line
    that is broken.
    """
    return (_read(line, where) for line, where in _lines(run_dir, names))


def _lines(run_dir: Path, names: Sequence[str]) -> Iterator[tuple[bytes, str]]:
    """Whole lines, each with its place."""
    for path in (run_dir / name for name in names):
        if not path.exists():
            continue
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.endswith(b"\n"):
                    yield line, f"{path}:{number}"


def _read(text: bytes, where: str) -> RecordedRollout:
    try:
        line = json.loads(text)
        found = RecordedRollout(
            step=line["step"],
            time=line["time"],
            actor=line["actor"],
            latency_s=line["latency_s"],
            encoded=text,
        )
        found.__dict__["trace"] = RolloutTrace.from_line(line)  # what the property would find
        return found
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ConfigError(f"{where}: is no recorded rollout ({error!r}); remove the line") from error


def find_rollout(run_dir: Path, key: RequestKey, step: int | None = None) -> RecordedRollout:
    """The last recorded rollout of a key, of an evaluation as well, or that of `step`.

    Only lines that hold the key are decoded. ConfigError that says what is there instead.
    """
    found, count, first, last = None, 0, None, None
    name = str(key).encode()
    for line in _lines(run_dir, (EVALUATIONS,) if key.evaluates else (OLDER, NAME)):
        count, first, last = count + 1, first or line, line
        if name in line[0]:
            rollout = _read(*line)
            if rollout.trace.key == key and step in (None, rollout.step):
                found = rollout
    if found is not None:
        return found
    if first is None or last is None:
        raise ConfigError(
            f"{run_dir}: holds no recorded rollouts; train with rollout.record_bytes above 0 to be able to replay"
        )
    wanted = str(key) if step is None else f"{key} of step {step}"
    oldest, newest = _read(*first), _read(*last)
    raise ConfigError(
        f"{run_dir}: {wanted} is not among its {count} recorded rollouts ({oldest.trace.key}, step {oldest.step} to "
        f"{newest.trace.key}, step {newest.step}); raise rollout.record_bytes to keep more, or name another key"
    )
