"""A checkpoint folder from the driver's side: written under another name, renamed when whole.

    PATH/trainer.json     format, number of ranks, ZeRO stage, and the driver's own values
    PATH/deepspeed/       DeepSpeed's state: masters, moments, what is trained; one file per rank
    PATH/ranks/           per rank: step counter and random generators
    PATH/adapter/         with adapters: as peft loads it

Ranks on several machines need one file system. No torch is imported here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import ConfigError

FORMAT = 1
META = "trainer.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What `trainer.json` says."""

    num_ranks: int
    zero_stage: int
    extra: dict[str, Any]
    """The driver's values, JSON only."""

    @staticmethod
    @contextlib.contextmanager
    def writing(path: Path, num_ranks: int, zero_stage: int, extra: dict[str, Any]) -> Iterator[Path]:
        """Yields the folder that the ranks write to; it becomes `path` when the block ends without an error.

        A folder that an earlier crash left behind under the temporary name is removed. `path` itself appears whole or
        not at all, and replaces a checkpoint of the same name.
        """
        path = path.absolute()
        with replacing(path) as folder:
            yield folder
            meta = {"format": FORMAT, "num_ranks": num_ranks, "zero_stage": zero_stage, "extra": extra}
            _write_durably(folder / META, json.dumps(meta, indent=1) + "\n")

    @classmethod
    def read(cls, path: Path, num_ranks: int, zero_stage: int) -> Checkpoint:
        """ConfigError when the folder is no whole checkpoint, or was written by a run of another shape."""
        try:
            meta = json.loads((path / META).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"training.resume: {path} is no complete checkpoint ({error}); name a folder that holds {META}"
            ) from error
        found = cls(num_ranks=meta["num_ranks"], zero_stage=meta["zero_stage"], extra=meta["extra"])
        if found.zero_stage != zero_stage or (zero_stage > 0 and found.num_ranks != num_ranks):
            raise ConfigError(
                f"training.resume: {path} was written by {found.num_ranks} ranks with ZeRO stage {found.zero_stage}, "
                f"this run has {num_ranks} with stage {zero_stage}; DeepSpeed's partitioned state cannot be dealt out "
                "anew: set cluster.num_learners and deepspeed.config as they were, or start from its merged export"
            )
        return found


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its name when the block ends without an error."""
    folder = path.with_name(f".{path.name}.writing")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    yield folder
    if path.exists():
        old = path.with_name(f".{path.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        path.rename(old)
        folder.rename(path)
        shutil.rmtree(old)
    else:
        folder.rename(path)
    _sync_folder(path.parent)


def _write_durably(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
