"""Merged weights as flat buckets with a manifest: what one publish hands to the engines."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from learner.merge import MergedWeights, ParameterSource, Rounding
from protocol.checksums import checksum
from protocol.contracts import TensorEntry, WeightsManifest

ALIGNMENT = 64
"""Tensors start at multiples of this, so that a receiver may view them in place whatever their dtype."""

Bucket = npt.NDArray[np.uint8]


class Publisher:
    """Remembers what was published last, so that a publish can send, and count, only what changed."""

    def __init__(self, weights: MergedWeights, source: ParameterSource, bucket_bytes: int, *, is_first: bool) -> None:
        self._weights = weights
        self._source = source
        self._bucket_bytes = bucket_bytes
        self._keep = is_first
        self._digests: dict[str, str] = {}
        self.steps_since_publish = 0

    def remember(self) -> None:
        """Takes the present weights as what was published last: the start checkpoint, or a restored one."""
        tensors = self._weights.tensors(self._source, Rounding(), only_changing=True, keep=self._keep)
        self._digests = {name: checksum(_bytes(tensor)) for name, tensor, _ in tensors}
        self.steps_since_publish = 0

    def publish(self, version: int, full: bool) -> Iterator[Bucket | WeightsManifest]:
        """Buckets one by one, then their manifest. Collective; ranks other than the first yield nothing.

        Args:
            full: every tensor of the checkpoint; else those of the layers that training can change. Whether a tensor
                did change is counted, not used to leave it out: an engine loads a fused layer whole or not at all.
        """
        started = time.monotonic()
        rounding, changed = Rounding(), 0
        packer = _Packer(self._bucket_bytes)
        for name, tensor, can_change in self._weights.tensors(
            self._source, rounding, only_changing=not full, keep=self._keep
        ):
            data = _bytes(tensor)
            changed += can_change and self._note(name, data)
            yield from packer.add(name, tensor, data)
        if self._keep:
            yield from packer.flush()
            yield WeightsManifest(
                version=version,
                full=full,
                tensors=tuple(packer.entries),
                bucket_checksums=tuple(packer.checksums),
                changed_tensors=changed,
                extra={
                    "optimizer_steps": float(self.steps_since_publish),
                    "merge_s": time.monotonic() - started,
                    "bytes": float(packer.total_bytes),
                    "rounding_lost_share": rounding.lost_share,
                },
            )
        self.steps_since_publish = 0

    def _note(self, name: str, data: Bucket) -> bool:
        digest = checksum(data)
        differs = self._digests.get(name) != digest
        self._digests[name] = digest
        return differs


class _Packer:
    """Lays tensors into buckets; a tensor larger than a bucket gets one of its own."""

    def __init__(self, bucket_bytes: int) -> None:
        self._limit = bucket_bytes
        self._pending: list[tuple[int, Bucket]] = []
        self._fill = 0
        self.entries: list[TensorEntry] = []
        self.checksums: list[str] = []
        self.total_bytes = 0

    def add(self, name: str, tensor: Tensor, data: Bucket) -> Iterator[Bucket]:
        if self._pending and self._fill + data.nbytes > self._limit:
            yield from self.flush()
        self.entries.append(
            TensorEntry(
                name=name,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                bucket=len(self.checksums),
                offset=self._fill,
                num_bytes=data.nbytes,
            )
        )
        self._pending.append((self._fill, data))
        self._fill += -(-data.nbytes // ALIGNMENT) * ALIGNMENT

    def flush(self) -> Iterator[Bucket]:
        """Closes the bucket that is being filled, if it holds anything."""
        if not self._pending:
            return
        bucket = np.zeros(self._fill, dtype=np.uint8)
        for offset, data in self._pending:
            bucket[offset : offset + data.nbytes] = data
        self.checksums.append(checksum(bucket))
        self.total_bytes += bucket.nbytes
        self._pending, self._fill = [], 0
        yield bucket


def _bytes(tensor: Tensor) -> Bucket:
    """The tensor's bytes without a copy."""
    array: Bucket = tensor.flatten().view(torch.uint8).numpy()
    return array
