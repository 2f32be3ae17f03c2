"""A checkpoint folder from the driver's side: written under another name, renamed when whole.

    PATH/trainer.json     format, number of ranks, ZeRO stage, and the driver's own values
    PATH/deepspeed/       DeepSpeed's state: masters, moments, what is trained; one file per rank
    PATH/ranks/           per rank: step counter, random generators, and what is trained
    PATH/adapter/         with adapters: as peft loads it
    PATH/merged/          as plain transformers and vLLM load it

Ranks on several machines need one file system. No torch is imported here.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from protocol.errors import ConfigError
from protocol.whole_file import write_whole

FORMAT = 3
META = "trainer.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """What `trainer.json` says."""

    num_ranks: int
    zero_stage: int
    extra: dict[str, Any]
    """The driver's values, JSON only."""

    @classmethod
    @contextlib.contextmanager
    def writing(cls, path: Path, num_ranks: int, zero_stage: int, extra: dict[str, Any]) -> Iterator[Path]:
        """Yields the folder that the ranks write to; it becomes `path` when the block ends without an error.

        A folder that an earlier crash left behind under the temporary name is removed. `path` itself appears whole or
        not at all, and replaces a checkpoint of the same name.
        """
        path = path.absolute()
        with replacing(path) as folder:
            yield folder
            saved = cls(num_ranks=num_ranks, zero_stage=zero_stage, extra=extra)
            (folder / META).write_text(saved._as_text(), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """ConfigError when the folder is no whole checkpoint of this format."""
        try:
            meta = json.loads((path / META).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"training.resume: {path} is no complete checkpoint ({error}); name a folder that holds {META}"
            ) from error
        if meta.get("format") != FORMAT:
            raise ConfigError(
                f"training.resume: {path} has format {meta.get('format')}, this version reads {FORMAT}; "
                "start anew from its merged/ folder"
            )
        return cls(num_ranks=meta["num_ranks"], zero_stage=meta["zero_stage"], extra=meta["extra"])

    def _as_text(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    def check_shape(self, path: Path, num_ranks: int, zero_stage: int) -> None:
        """ConfigError where a run of this shape cannot take the state over.

        Another number of ranks may, at stages 0 to 2 (`learner.universal`). At stage 3 DeepSpeed 0.19.8 does not
        restore the optimizer's state exactly: the steps after it differ in the second digit.
        """
        if self.zero_stage != zero_stage or (zero_stage == 3 and self.num_ranks != num_ranks):
            raise ConfigError(
                f"training.resume: {path} was written by {self.num_ranks} ranks with ZeRO stage {self.zero_stage}, "
                f"this run has {num_ranks} with stage {zero_stage}; DeepSpeed deals the state of stages 0 to 2 out "
                "anew, to the same stage: set cluster.num_learners and deepspeed.config as they were, or start from "
                "its merged export"
            )


def remember(path: Path, extra: dict[str, Any]) -> None:
    """Puts the driver's values of a whole checkpoint anew; the ranks' state stays as it is."""
    write_whole(path / META, replace(Checkpoint.read(path), extra=extra)._as_text())


def check_signature(path: Path, saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    """ConfigError where a run trains other tensors than the one that wrote the state (`learner.model.signature`)."""
    differing = [name for name in {**saved, **now} if saved.get(name) != now.get(name)]
    if differing:
        first = differing[0]
        raise ConfigError(
            f"training.resume: {path} was written by a run that trained {len(differing)} things otherwise, the first "
            f"is {first}: {saved.get(first, 'not trained')} there, {now.get(first, 'not trained')} here; set tuner and "
            "model as they were, or start anew from its merged/ folder"
        )


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its name, with all files on disk, when the block ends without an error.

    With one the folder is removed: half a checkpoint would fill a disk that is full already.
    """
    folder = path.with_name(f".{path.name}.writing")
    _remove(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
        for file in folder.rglob("*"):
            _sync(file)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)  # the error that is raised says more; the next start tries again
        raise
    replace_folder(folder, path)


def replace_folder(source: Path, target: Path) -> None:
    """Renames `source`. A folder that has the name is removed after, so that a crash between leaves one of them."""
    old = target.with_name(f".{target.name}.replaced")
    _remove(old)
    if target.exists():
        target.rename(old)
    source.rename(target)
    _remove(old)
    _sync(target.parent)


def mend_folder(folder: Path) -> None:
    """Puts back what a crash within `replace_folder` left without its name, removes what one left half written."""
    for old in folder.glob(".*.replaced"):
        path = old.with_name(old.name.removeprefix(".").removesuffix(".replaced"))
        if not path.exists():
            old.rename(path)
    for left in (path for kind in ("replaced", "writing", "removed") for path in folder.glob(f".*.{kind}")):
        _remove(left)


def remove_folder(path: Path) -> None:
    """Takes its name away first: a crash within leaves nothing that looks like a whole checkpoint."""
    doomed = path.with_name(f".{path.name}.removed")
    _remove(doomed)
    path.rename(doomed)
    _remove(doomed)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
