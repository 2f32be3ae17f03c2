"""Lines of the data set on their way through the driver: as they stand in the file, parsed by the actor that is asked.

Parsing and pickling a record of 70 objects takes the driver a hundred times as long as handing its line on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from protocol.contracts import Record, RequestKey, RolloutRequest
from protocol.record_lines import parse_record
from protocol.serialization import Ordering


@dataclass(frozen=True, kw_only=True)
class RecordLine:
    """A line of the data set that nobody has parsed, and everything that its parsing depends on."""

    text: bytes
    index: int
    source: str
    root: str
    """Folder that relative image paths count from."""
    confined_to: str | None
    """Folder that its image must lie in (ROOT_IMAGE_DIR of the process that opened the file)."""
    ordering: Ordering
    seed: int
    epoch: int

    def parse(self) -> Record:
        """Raises RecordError as `parse_record` does."""
        return parse_record(
            self.text,
            index=self.index,
            source=self.source,
            root=Path(self.root),
            confined_to=self.confined_to,
            ordering=self.ordering,
            seed=self.seed,
            epoch=self.epoch,
        )


class RecordLines(Protocol):
    """Lines that may be gone through again and again."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[RecordLine]: ...


@dataclass(frozen=True, kw_only=True)
class UnreadRequest:
    """A `RolloutRequest` whose record is a line yet."""

    key: RequestKey
    line: RecordLine
    seed: int
    min_version: int = 0
    traced: bool = True

    @property
    def source(self) -> str:
        """Where a person finds its record."""
        return self.line.source

    def read(self) -> RolloutRequest:
        """Raises RecordError where the line is no record."""
        return RolloutRequest(
            key=self.key, record=self.line.parse(), seed=self.seed, min_version=self.min_version, traced=self.traced
        )


AnyRequest = RolloutRequest | UnreadRequest
"""What the driver queues and hands over."""
