"""A run as its folder tells it: what the report and the live view read. Nothing here needs the run to live."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from deploy.environment import NAME as ENVIRONMENT
from deploy.health_numbers import without_empty_shares
from deploy.ledger import NAME as LEDGER
from deploy.recorder import EVALUATIONS, RecordedRollout, read_rollouts
from deploy.timeline import Span
from deploy.tracking import SUMMARY
from protocol.errors import ConfigError

Row = dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneSpan:
    """One bar of the timeline."""

    lane: str
    """`driver`, `actor-0`, `rank-0`, ..."""
    name: str
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class RunData:
    """Everything that is in a run's folder."""

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
    num_trained: int
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


def read_run(folder: Path, *, with_rollouts: bool = True) -> RunData:
    """Reads a run's folder once; ConfigError where it is none."""
    return RunReader(folder).read(with_rollouts=with_rollouts)


class RunReader:
    """Reads a run's folder again and again, and of its growing files only what is new."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._metrics, self._events, self._ledger = (
            JsonLines(folder / name) for name in ("metrics.jsonl", "events.jsonl", LEDGER)
        )

    def read(self, *, with_rollouts: bool = False) -> RunData:
        """The run as it is now; ConfigError where the folder is none of a run."""
        folder = self._folder
        if not (folder / "metrics.jsonl").is_file():
            raise ConfigError(f"{folder}: holds no metrics.jsonl; name the folder of a run, e.g. runs/demo")
        rows = [_numbers(line) for line in self._metrics.read()]
        events = self._events.read()
        summary = _json(folder / SUMMARY)
        failed = summary is None and bool(events) and events[-1]["kind"] == "end"  # a resume writes behind it
        return RunData(
            name=folder.resolve().name,
            folder=folder,
            config=_yaml(folder / "config.yaml"),
            environment=_json(folder / ENVIRONMENT) or {},
            summary=summary,
            error=events[-1]["error"] if failed else None,
            steps=_by_step(row for row in rows if "loss/total" in row or "rollout/segments" in row),
            evaluations=_by_step(row for row in rows if "eval_rollout_f1" in row),
            spans=_spans(events),
            events=events,
            num_trained=sum(len(line["keys"]) for line in self._ledger.read()),
            rollouts=list(read_rollouts(folder)) if with_rollouts else [],
            evaluated=list(read_rollouts(folder, [EVALUATIONS])) if with_rollouts else [],
        )


class JsonLines:
    """The whole lines of a JSONL file that another process appends to, and that a resume may cut back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: list[dict[str, Any]] = []
        self._read = 0
        """Bytes of those lines."""
        self._end = b""
        """The last of them."""

    def read(self) -> list[dict[str, Any]]:
        """All lines so far; one that is being written has no end yet and is left out."""
        if not self._path.is_file():
            return []
        with self._path.open("rb") as file:
            if not self._continues(file):
                self._lines, self._read, self._end = [], 0, b""
            file.seek(self._read)
            fresh = file.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        lines = whole.splitlines(keepends=True)
        self._lines += [json.loads(line) for line in lines]
        self._read, self._end = self._read + len(whole), lines[-1] if lines else self._end
        return list(self._lines)

    def _continues(self, file: IO[bytes]) -> bool:
        """Whether what was read still ends with the line that it ended with."""
        file.seek(self._read - len(self._end))
        return file.read(len(self._end)) == self._end


def _by_step(rows: Any) -> list[Row]:
    latest = {row["step"]: row for row in rows}
    return [latest[step] for step in sorted(latest)]


def _numbers(line: dict[str, Any]) -> Row:
    """Numbers that are not finite stand in the file as text."""
    return without_empty_shares({name: float(value) for name, value in line.items()})


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


def _yaml(path: Path) -> dict[str, Any]:
    return (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}


def _spans(events: Sequence[dict[str, Any]]) -> list[LaneSpan]:
    """The loop's and the actors' own spans; others follow from what the loop said of a step, or of a publish."""
    found = []
    for event in events:
        if event["kind"] == "span":
            span = Span(event["start"], event["end"])
            found.append(LaneSpan(lane=event["lane"], name=event["name"], span=span))
        elif event["kind"] == "optimizer_step":
            start = event["time"] - event["seconds"]
            for rank, busy in enumerate(event["busy_s"]):
                found.append(LaneSpan(lane=f"rank-{rank}", name="train", span=Span(start, start + busy)))
        elif event["kind"] == "publish" and "seconds" in event:  # not in runs of before; rank 0 merges and hands over
            start = event["time"] - event["seconds"]
            found.append(LaneSpan(lane="rank-0", name="sync", span=Span(start, start + event["learner_s"])))
            for engine in event["engines"]:
                span = Span(engine["ended"] - engine["seconds"], engine["ended"])
                found.append(LaneSpan(lane=engine["name"], name="sync", span=span))
    return sorted(found, key=lambda each: each.span)
