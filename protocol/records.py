"""The JSONL data set as a file: read line by line or by position, never as a whole, and in a seeded order (SPEC 2).

What a line must hold is said in `record_lines`.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from protocol.contracts import Record
from protocol.errors import RecordError
from protocol.record_lines import DATASET_SEED
from protocol.serialization import Ordering
from protocol.unread import RecordLine

VALIDATION_SAMPLE_SEED = 53
_CHUNK_BYTES = 1 << 20
_NEWLINE = 10


class RecordFile:
    """Random access to the records of a file; picklable, holds 8 bytes per record and no open file."""

    def __init__(
        self,
        path: str | Path,
        *,
        limit: int | None = None,
        ordering: Ordering = "sorted",
        seed: int = DATASET_SEED,
    ) -> None:
        """Finds where each line starts; looks at no line's content.

        Args:
            limit: keep the first records only.
            seed: of the object order when `ordering` is `random`.

        Raises:
            RecordError: the file cannot be read, or holds no line.
        """
        self._path = str(path)
        self._ordering: Ordering = ordering
        self._root = _root(path)
        self._confined_to = _confined_to()
        self._seed = seed
        self._offsets, self._stamp = _line_offsets(path, limit)
        if len(self) == 0:
            raise RecordError(f"{path}: holds no record; write one JSON object per line")

    def __len__(self) -> int:
        return self._offsets.size - 1

    def __getitem__(self, index: int) -> Record:
        """The record of row `index`; IndexError outside the file, RecordError for a line that is no record."""
        return self.get(index).parse()

    def get(self, index: int, epoch: int = 0) -> RecordLine:
        """The line of row `index`, with the object order of an epoch. IndexError outside the file."""
        return next(self.read([(index, epoch)]))

    def read(self, rows: Iterable[tuple[int, int]]) -> Iterator[RecordLine]:
        """The line of each (row, epoch); opens the file once. IndexError outside the file."""
        with _open(self._path) as file:
            if _stamp(file) != self._stamp:
                raise RecordError(f"{self._path}: was changed while it is in use; restart the run")
            for index, epoch in rows:
                if not 0 <= index < len(self):
                    raise IndexError(f"row must be in 0..{len(self) - 1}, got {index}")
                start, end = self._offsets[index : index + 2].tolist()
                file.seek(start)
                yield RecordLine(
                    text=file.read(end - start),
                    index=index,
                    source=f"{self._path}:{index + 1}",
                    root=str(self._root),
                    confined_to=self._confined_to,
                    ordering=self._ordering,
                    seed=self._seed,
                    epoch=epoch,
                )


class RecordRows:
    """Some rows of a file in a given order, one perhaps more than once; read anew whenever they are gone through."""

    def __init__(self, records: RecordFile, rows: Sequence[int]) -> None:
        self._records = records
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[RecordLine]:
        """RecordError where the file was changed meanwhile."""
        return self._records.read((row, 0) for row in self._rows)


def _line_offsets(path: str | Path, limit: int | None) -> tuple[npt.NDArray[np.int64], tuple[int, int]]:
    """[N + 1] byte offsets, line i is [offsets[i], offsets[i + 1]); blank lines at the end of the file are left out."""
    parts = [np.zeros(1, dtype=np.int64)]
    found = position = content_end = 0
    with _open(path) as file:
        stamp = _stamp(file)
        while (limit is None or found < limit) and (chunk := file.read(_CHUNK_BYTES)):
            breaks = np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == _NEWLINE)
            parts.append(breaks + (position + 1))
            stripped = chunk.rstrip()
            content_end = position + len(stripped) if stripped else content_end
            found += breaks.size
            position += len(chunk)
    offsets = np.concatenate([*parts, [position]])  # the last line may have no line break
    num_lines = int(np.searchsorted(offsets, content_end))
    return offsets[: (num_lines if limit is None else min(limit, num_lines)) + 1], stamp


def _stamp(file: BinaryIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns


def _open(path: str | Path) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}); correct the path") from error


def _root(path: str | Path) -> Path:
    """Where relative image paths count from: the environment's ROOT_IMAGE_DIR, the file's own folder."""
    return Path(os.environ.get("ROOT_IMAGE_DIR") or Path(path).parent).absolute()


def _confined_to() -> str | None:
    """With ROOT_IMAGE_DIR set, images must lie below it."""
    return os.environ.get("ROOT_IMAGE_DIR") or None


def epoch_permutation(num_records: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """[num_records] row of each position of an epoch; the same on every machine (SPEC 2.4)."""
    rows = list(range(num_records))
    mixed = (seed & 0xFFFFFFFF) ^ ((epoch + 1) * 0x9E3779B1 & 0xFFFFFFFF)
    random.Random(mixed).shuffle(rows)
    return np.array(rows, dtype=np.int64)


def sample_with_replacement(num_records: int, count: int) -> npt.NDArray[np.int64]:
    """[count] rows drawn with replacement, for `custom.val_sample_with_replacement`."""
    generator = random.Random(VALIDATION_SAMPLE_SEED)
    return np.array([generator.randrange(num_records) for _ in range(count)], dtype=np.int64)
