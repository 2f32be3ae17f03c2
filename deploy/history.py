"""What a run has written down so far, and how a resume forgets what its checkpoint does not cover.

A checkpoint remembers how long each file was when it was taken. A run that continues from it cuts the files back to
that length: steps between checkpoint and crash are trained again, and no reader finds them twice. What happened to the
run itself stays: starts, restarts and ends in events.jsonl, restart counts in metrics.jsonl.

A run that continues from the checkpoint of another run begins with a copy of that run's files, and of the answers to
its evaluations so far: these are written in the background, so they are cut by their step.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deploy import ledger
from deploy.recorder import EVALUATIONS
from protocol.errors import ConfigError
from protocol.whole_file import write_whole

FILES = (ledger.NAME, "metrics.jsonl", "events.jsonl", "quarantine.jsonl")

OF_THE_RUN: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "events.jsonl": lambda line: line["kind"] in ("resume", "restart", "end"),
    "metrics.jsonl": lambda line: "train/restarts" in line,
}
"""Lines that a cut keeps."""


def lengths(run_dir: Path) -> dict[str, int]:
    """Bytes of each file, which are on disk when this returns."""
    return {name: _durable_size(run_dir / name) for name in FILES}


def cut_back(run_dir: Path, lengths: Mapping[str, int]) -> None:
    """Makes the files as long as a checkpoint remembers; no lengths: empty. May be repeated after a crash in it.

    Raises ConfigError, before anything is changed, where they are not its files.
    """
    check_lengths(run_dir, lengths)
    for name in FILES:
        if (run_dir / name).exists():
            _cut(run_dir / name, lengths.get(name, 0), OF_THE_RUN.get(name, lambda _: False))


def check_lengths(run_dir: Path, lengths: Mapping[str, int]) -> None:
    """ConfigError where a file is shorter than a checkpoint remembers, or has no end of a line there."""
    for name in FILES:
        wanted, found = lengths.get(name, 0), _size(run_dir / name)
        if found < wanted:
            raise ConfigError(
                f"training.resume: {run_dir / name} holds {found} bytes, and {wanted} when the checkpoint was written; "
                "put the run's file back, or start anew from the checkpoint's merged/ folder"
            )
        if wanted and _byte_before(run_dir / name, wanted) != b"\n":
            raise ConfigError(
                f"training.resume: {run_dir / name} is not what the checkpoint saw: no line ends at byte {wanted}; "
                "put the run's file back, or start anew from the checkpoint's merged/ folder"
            )


def _byte_before(path: Path, position: int) -> bytes:
    with path.open("rb") as file:
        file.seek(position - 1)
        return file.read(1)


def copy_history(source: Path, run_dir: Path, last_step: int) -> None:
    """The files of another run that are not there yet, and its evaluations' answers up to `last_step`. Each appears
    whole: so this may be repeated after a crash in it, and what happened to the run itself since then stays."""
    for name in FILES:
        if (source / name).exists() and not (run_dir / name).exists():
            copy = run_dir / f".{name}.writing"
            shutil.copy(source / name, copy)
            copy.replace(run_dir / name)
    if (source / EVALUATIONS).exists() and not (run_dir / EVALUATIONS).exists():
        with (source / EVALUATIONS).open(encoding="utf-8") as lines:
            whole = [line for line in lines if line.endswith("\n")]
        write_whole(run_dir / EVALUATIONS, "".join(line for line in whole if json.loads(line)["step"] <= last_step))


def _cut(path: Path, length: int, keep: Callable[[Mapping[str, Any]], bool]) -> None:
    with path.open("rb+") as file:
        file.seek(length)
        whole = [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
        kept = [line for line in whole if keep(json.loads(line))]
        file.truncate(length)
        file.seek(length)
        file.writelines(kept)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _durable_size(path: Path) -> int:
    if not path.exists():
        return 0
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size
