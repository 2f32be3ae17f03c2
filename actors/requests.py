"""The endless order of owed rollouts: epoch after epoch, each a seeded permutation of the data set (SPEC 2.4)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import xxhash

from protocol.contracts import Record, RequestKey, RolloutRequest
from protocol.records import epoch_permutation
from protocol.unread import AnyRequest, RecordLine, UnreadRequest


class RecordSource(Protocol):
    """Random access to records, without holding them."""

    def __len__(self) -> int: ...

    def read(self, rows: Iterable[tuple[int, int]]) -> Iterable[RecordLine | Record]:
        """What stands in each (row, epoch)."""


class RequestStream:
    """Position p is row `p % N` of epoch `p // N`; the position is all that a resume needs."""

    def __init__(self, records: RecordSource, seed: int, position: int = 0, *, shuffle: bool = True) -> None:
        """`shuffle` False takes each epoch in the file's order."""
        self._records = records
        self._seed = seed
        self._shuffle = shuffle
        self._epoch = -1
        self._rows: Sequence[int] | npt.NDArray[np.int64] = ()
        self.position = position

    def take(self, count: int, min_version: int) -> list[tuple[int, AnyRequest]]:
        """The next `count` requests, each with its position."""
        positions = range(self.position, self.position + count)
        taken = list(zip(positions, self._requests(positions, min_version), strict=True))
        self.position += count
        return taken

    def again(self, position: int, min_version: int) -> AnyRequest:
        """The request of a position that was taken before: same record, same seed."""
        return next(self._requests([position], min_version))

    def epochs(self, num_rollouts: int) -> float:
        """Passes over the data set that so many rollouts are."""
        return num_rollouts / len(self._records)

    def _requests(self, positions: Sequence[int], min_version: int) -> Iterator[AnyRequest]:
        keys = [self._key(position) for position in positions]
        for key, found in zip(keys, self._records.read((key.record, key.epoch) for key in keys), strict=True):
            seed = request_seed(self._seed, key)
            if isinstance(found, Record):
                yield RolloutRequest(key=key, record=found, seed=seed, min_version=min_version)
            else:
                yield UnreadRequest(key=key, line=found, seed=seed, min_version=min_version)

    def _key(self, position: int) -> RequestKey:
        epoch, offset = divmod(position, len(self._records))
        if epoch != self._epoch:
            size = len(self._records)
            self._epoch = epoch
            self._rows = epoch_permutation(size, self._seed, epoch) if self._shuffle else range(size)
        return RequestKey(record=int(self._rows[offset]), epoch=epoch)


def request_seed(seed: int, key: RequestKey) -> int:
    """A rerun of the same record in the same epoch samples the same rollout."""
    return xxhash.xxh3_64_intdigest(struct.pack("<4q", seed, *key)) & 0x7FFF_FFFF
