"""The endless order of owed rollouts: epoch after epoch, each a seeded permutation of the data set (SPEC 2.4)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
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

    def get(self, index: int, epoch: int = 0) -> RecordLine | Record: ...


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
        taken = []
        for _ in range(count):
            taken.append((self.position, self._request(self.position, min_version)))
            self.position += 1
        return taken

    def again(self, position: int, min_version: int) -> AnyRequest:
        """The request of a position that was taken before: same record, same seed."""
        return self._request(position, min_version)

    def epochs(self, num_rollouts: int) -> float:
        """Passes over the data set that so many rollouts are."""
        return num_rollouts / len(self._records)

    def _request(self, position: int, min_version: int) -> AnyRequest:
        epoch, offset = divmod(position, len(self._records))
        if epoch != self._epoch:
            size = len(self._records)
            self._epoch = epoch
            self._rows = epoch_permutation(size, self._seed, epoch) if self._shuffle else range(size)
        row = int(self._rows[offset])
        key = RequestKey(record=row, epoch=epoch)
        seed = request_seed(self._seed, key)
        found = self._records.get(row, epoch)
        if isinstance(found, Record):
            return RolloutRequest(key=key, record=found, seed=seed, min_version=min_version)
        return UnreadRequest(key=key, line=found, seed=seed, min_version=min_version)


def request_seed(seed: int, key: RequestKey) -> int:
    """A rerun of the same record in the same epoch samples the same rollout."""
    return xxhash.xxh3_64_intdigest(struct.pack("<4q", seed, *key)) & 0x7FFF_FFFF
