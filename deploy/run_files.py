"""A run as its folder tells it: what the report and the live view read. Nothing here needs the run to live."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Generic, Protocol, TypeVar

import yaml

from deploy.environment import NAME as ENVIRONMENT
from deploy.ledger import NAME as LEDGER
from deploy.recorder import EVALUATIONS, RecordedRollout, read_rollouts
from deploy.run_events import LaneSpan, RunEvents
from deploy.run_rows import Row, RunRows
from deploy.tracking import SUMMARY
from protocol.errors import ConfigError

KEEP_S = 300.0
"""Seconds of spans that are kept where a run is looked at again and again: of them the newest minute is shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """What is in a run's folder."""

    name: str
    folder: Path
    config: dict[str, Any]
    """As written at the start, every setting in effect."""
    environment: dict[str, Any]
    summary: dict[str, Any] | None
    """None while the run lives, or where it failed."""
    error: str | None
    """What ended it."""
    steps: list[Row]
    """One per optimizer step, in order; of a step that was repeated after a crash, the later."""
    evaluations: list[Row]
    spans: list[LaneSpan]
    events: list[dict[str, Any]]
    """What happened to the run itself: resumes, restarts and ends."""
    phase: dict[str, Any] | None
    """The last `phase` event."""
    last_event: float | None
    """Unix seconds."""
    began: float | None
    """Unix seconds at which the loop first waited for rollouts since its last start."""
    num_trained: int = 0
    """Rollouts in the ledger."""
    rollouts: list[RecordedRollout] = field(default_factory=list)
    evaluated: list[RecordedRollout] = field(default_factory=list)
    """Answers to validation records, in the order of the evaluations."""

    def setting(self, path: str, default: Any = None) -> Any:
        """`setting("training.max_steps")`."""
        value: Any = self.config
        for name in path.split("."):
            if not isinstance(value, dict) or name not in value:
                return default
            value = value[name]
        return value

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Steps and values of a metric, of training or evaluation; steps without it are left out."""
        rows = self.evaluations if name.startswith("eval_") else self.steps
        found = [(row["step"], row[name]) for row in rows if name in row]
        return [step for step, _ in found], [value for _, value in found]


def read_run(folder: Path) -> RunData:
    """Everything, once; ConfigError where the folder is none of a run."""
    return replace(
        RunReader(folder, keep_s=math.inf).read(),
        num_trained=_num_trained(folder / LEDGER),
        rollouts=list(read_rollouts(folder)),
        evaluated=list(read_rollouts(folder, [EVALUATIONS])),
    )


def read_numbers(folder: Path) -> RunData:
    """What the health rules need, once: of the events only restarts are read. ConfigError as above."""
    return RunReader(folder, having=b'"kind": "restart"').read()


class RunReader:
    """Reads a run's numbers and events again and again, and of its growing files only what is new."""

    def __init__(self, folder: Path, *, keep_s: float = KEEP_S, having: bytes = b"") -> None:
        """`keep_s` as `RunEvents` has it; events without the bytes of `having` are passed over."""
        self._folder = folder
        self._rows = JsonLines(folder / "metrics.jsonl", RunRows)
        self._events = JsonLines(folder / "events.jsonl", lambda: RunEvents(keep_s), having)

    def read(self) -> RunData:
        """The run as it is now; ConfigError where the folder is none of a run."""
        folder = self._folder
        if not (folder / "metrics.jsonl").is_file():
            raise ConfigError(f"{folder}: holds no metrics.jsonl; name the folder of a run, e.g. runs/demo")
        rows, events, summary = self._rows.read(), self._events.read(), _json(folder / SUMMARY)
        last = events.last
        failed = summary is None and last is not None and last["kind"] == "end"  # a resume writes behind it
        return RunData(
            name=folder.resolve().name,
            folder=folder,
            config=_yaml(folder / "config.yaml"),
            environment=_json(folder / ENVIRONMENT) or {},
            summary=summary,
            error=last["error"] if last is not None and failed else None,
            steps=rows.steps,
            evaluations=rows.evaluations,
            spans=events.spans,
            events=list(events.of_the_run),
            phase=events.phase,
            last_event=last["time"] if last is not None else None,
            began=events.began,
        )


class Kept(Protocol):
    """What lines are put into."""

    def append(self, line: dict[str, Any], /) -> None:
        """Takes a line in."""


K = TypeVar("K", bound=Kept)


class JsonLines(Generic[K]):
    """The whole lines of a JSONL file that another process appends to, and that a resume may cut back."""

    def __init__(self, path: Path, make: Callable[[], K], having: bytes = b"") -> None:
        """`make` gives what the lines are put into, anew where the file was cut back; lines without the bytes of
        `having` are passed over."""
        self._path, self._make, self._having = path, make, having
        self._kept = make()
        self._read = 0
        """Bytes of the whole lines so far."""
        self._end = b""
        """The last of them."""

    def read(self) -> K:
        """What was made of all lines so far; one that is being written has no end yet and is left out."""
        if not self._path.is_file():
            return self._make()
        with self._path.open("rb") as file:
            if not self._continues(file):
                self._kept, self._read, self._end = self._make(), 0, b""
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if self._having in line:
                    self._kept.append(json.loads(line))
                self._read, self._end = self._read + len(line), line
        return self._kept

    def _continues(self, file: IO[bytes]) -> bool:
        """Whether what was read still ends with the line that it ended with."""
        file.seek(self._read - len(self._end))
        return file.read(len(self._end)) == self._end


def _num_trained(ledger: Path) -> int:
    if not ledger.is_file():
        return 0
    with ledger.open("rb") as lines:
        return sum(len(json.loads(line)["keys"]) for line in lines if line.endswith(b"\n"))


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def _yaml(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
