"""Writes a run down: metrics.jsonl, events.jsonl, summary.json and TensorBoard, all below the run directory.

    runs/demo/metrics.jsonl    {"step": 3, "time": 1760000000.0, "loss/ce": 1.25, ...}   one line per logged event
    runs/demo/events.jsonl     {"time": ..., "kind": "publish", "version": 4, ...}
    runs/demo/tensorboard/     the same numbers under the same names; below training.logging_dir where that is set
    runs/demo/summary.json     written once, at the end; a run that goes on has none until its new end

Files are appended to and flushed line by line, so they can be followed while the run lives. A resumed run goes on in
them, cut back to its checkpoint (`deploy.history`); TensorBoard gets the mark at which it drops later steps itself.

TensorBoard and Weights & Biases are written by a thread: where their disk or network fails or hangs, what they miss is
logged and counted, and the run goes on.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from deploy.background import BackgroundWriter
from protocol.config import RunConfig
from protocol.errors import ConfigError
from protocol.metric_table import assert_known
from protocol.whole_file import write_whole

SUMMARY = "summary.json"
MAX_WAITING = 256
"""Steps that wait for TensorBoard or Weights & Biases before more are dropped."""


class MetricWriter(Protocol):
    """One place besides the JSONL file that numbers go to."""

    def write(self, step: int, timestamp: float, metrics: Mapping[str, float]) -> None: ...

    def rewind(self, step: int) -> None:
        """What was written for later steps counts no more."""

    def close(self) -> None: ...


class TensorBoardWriter:
    """Scalars through tensorboard's own writer: no torch in the driver for this."""

    def __init__(self, directory: Path, run_dir: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._event, self._summary, self._session_log = event_pb2.Event, summary_pb2.Summary, event_pb2.SessionLog
        self._file = EventFileWriter(str(directory / "tensorboard"))

    def write(self, step: int, timestamp: float, metrics: Mapping[str, float]) -> None:
        values = [self._summary.Value(tag=name, simple_value=value) for name, value in metrics.items()]
        self._file.add_event(self._event(wall_time=timestamp, step=step, summary=self._summary(value=values)))

    def rewind(self, step: int) -> None:
        start = self._session_log(status=self._session_log.START)
        self._file.add_event(self._event(wall_time=time.time(), step=step + 1, session_log=start))

    def close(self) -> None:
        self._file.close()


class WandbWriter:
    """Weights & Biases, where the package is installed; its own settings (WANDB_MODE, WANDB_PROJECT) apply.

    A run that goes on in its folder goes on in its page: `wandb_id` in the folder names it.
    """

    def __init__(self, directory: Path, run_dir: Path) -> None:
        """ConfigError without the package."""
        try:
            wandb = importlib.import_module("wandb")
        except ImportError as error:
            raise ConfigError(
                f"training.report_to: wandb is asked for and cannot be imported ({error}); "
                "pip install wandb, or remove the name from the list"
            ) from error
        directory.mkdir(parents=True, exist_ok=True)
        project = os.environ.get("WANDB_PROJECT", "rollmatch")
        id_file = run_dir / "wandb_id"
        if not id_file.exists():
            id_file.write_text(uuid.uuid4().hex[:12] + "\n")
        self._run = wandb.init(
            project=project, name=run_dir.name, id=id_file.read_text().strip(), dir=str(directory), resume="allow"
        )

    def write(self, step: int, timestamp: float, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def rewind(self, step: int) -> None:
        """Nothing can be taken back there: it ignores steps that it has, so the first training of a step is shown."""

    def close(self) -> None:
        self._run.finish()


WRITERS: dict[str, Callable[[Path, Path], MetricWriter]] = {"tensorboard": TensorBoardWriter, "wandb": WandbWriter}
"""Name in `training.report_to` → maker, given the run's logging directory and its folder."""


class RunTracker:
    """The one writer of a run's numbers. Used by the driver's loop only, from one thread."""

    def __init__(
        self, run_dir: Path, report_to: Sequence[str] = ("tensorboard",), logging_dir: Path | None = None
    ) -> None:
        """Creates `run_dir`. `report_to` names WRITERS; `none` adds nothing.

        `logging_dir` is where the writers' files go; None: `run_dir`.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        self._run_dir = run_dir
        (run_dir / SUMMARY).unlink(missing_ok=True)
        self._metrics = (run_dir / "metrics.jsonl").open("a", encoding="utf-8")
        self._events = (run_dir / "events.jsonl").open("a", encoding="utf-8")
        self._writers = [WRITERS[name](logging_dir or run_dir, run_dir) for name in report_to if name != "none"]
        self._background = BackgroundWriter(MAX_WAITING)

    @classmethod
    def of(cls, config: RunConfig) -> RunTracker:
        """The tracker that the configuration asks for."""
        return cls(config.run_dir, config.training.report_to, config.logging_dir)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one event. A number that is not finite is written as "NaN", "Infinity" or "-Infinity" in the JSONL.

        Raises ContractError, before anything is written, for a name that protocol/metric_names.py lacks.
        """
        assert_known(metrics)
        now = time.time()
        numbers = {name: float(value) for name, value in metrics.items()}
        _append(self._metrics, {"step": step, "time": now} | {name: _json_number(v) for name, v in numbers.items()})
        for writer in self._writers:
            self._background.submit(f"step {step} ({type(writer).__name__})", partial(writer.write, step, now, numbers))

    def take_counters(self) -> dict[str, float]:
        """What the writers missed since the last call, see `BackgroundWriter`."""
        return self._background.take_counters()

    def event(self, kind: str, **fields: Any) -> None:
        """Append something that happened; values that JSON lacks are written as their text."""
        _append(self._events, {"time": time.time(), "kind": kind} | fields)

    def rewind(self, step: int) -> None:
        """The run goes back to `step`: tells those whose files cannot be cut (the others: `deploy.history`)."""
        for writer in self._writers:
            self._background.submit(f"the way back to step {step}", partial(writer.rewind, step))

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """Write summary.json; returns its path."""
        path = self._run_dir / SUMMARY
        write_whole(path, json.dumps(summary, indent=2, ensure_ascii=False, default=str) + "\n")
        return path

    def close(self) -> None:
        """Flush and close everything; twice is fine."""
        for writer in self._writers:
            self._background.submit(f"the end ({type(writer).__name__})", writer.close)
        self._writers = []
        self._background.close()
        self._metrics.close()
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _json_number(value: float) -> float | str:
    """JSON has no NaN: a name keeps the file readable for every parser, where null would hide which one it was."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _append(file: Any, line: Mapping[str, Any]) -> None:
    file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
    file.flush()
