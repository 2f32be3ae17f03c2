"""Merged weights as buckets with a manifest: what one publish hands to the engines.

    merge, round ──► bucket: a tuple of the tensors' own memory ──► manifest
                        ├─ yielded: the object store copies it once, into shared memory
                        └─ digests of its tensors, in a thread beside that copy

A bucket is not assembled here: pickle hands each array to the object store out of band, so the copy into shared memory
is the only one. The caller that iterates sets the pace; the manifest waits for the last digest, which waits for nobody.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from learner.adapter_weights import AdapterWeights
from learner.export import compared_with
from learner.merge import MergedWeights, ParameterSource, Rounding
from protocol.checksums import checksum, combined
from protocol.shared_bytes import SharedBytes
from protocol.weights import Bucket, TensorEntry, WeightsManifest


class Publisher:
    """Remembers what was published last, so that a publish can send, and count, only what changed."""

    def __init__(
        self,
        weights: MergedWeights | AdapterWeights,
        source: ParameterSource,
        bucket_bytes: int,
        *,
        is_first: bool,
    ) -> None:
        self._weights = weights
        self._source = source
        self._bucket_bytes = bucket_bytes
        self._keep = is_first
        self._digests: dict[str, str] = {}
        self._rates: list[float] = []
        """Largest learning rate of each optimizer step since the last publish."""

    def count_step(self, largest_rate: float) -> None:
        """Notes an optimizer step that was applied, and the largest learning rate of its parameter groups."""
        self._rates.append(largest_rate)

    def remember(self, start: Path | None = None) -> None:
        """Takes the present weights as what was published last: the start checkpoint, or a restored one.

        With `start`, the folder of that checkpoint, ContractError where they are not those of its files.
        """
        tensors = self._weights.tensors(self._source, Rounding(), only_changing=True, keep=self._keep)
        if start is not None:
            tensors = compared_with(start, tensors)
        self._digests = {name: checksum(_bytes(tensor)) for name, tensor, _ in tensors}
        self._rates.clear()

    def publish(self, version: int, full: bool) -> Iterator[Bucket | WeightsManifest]:
        """Buckets one by one, then their manifest. Collective; ranks other than the first yield nothing.

        A bucket is valid until the next one is asked for: it shows the tensors' memory and does not own it.

        Args:
            full: every tensor of the checkpoint; else those of the layers that training can change. Whether a tensor
                did change is counted, not used to leave it out: an engine loads a fused layer whole or not at all.
        """
        started, put_s = time.monotonic(), 0.0
        rounding = Rounding()
        with ThreadPoolExecutor(max_workers=1) as hashing:
            packer = _Packer(self._bucket_bytes, hashing)
            for bucket in self._packed(packer, rounding, full):
                yielded = time.monotonic()
                yield bucket
                put_s += time.monotonic() - yielded
            changed = sum(self._note(name, digest) for name, digest in packer.digests())
        if self._keep:
            report = {
                "optimizer_steps": float(len(self._rates)),
                "largest_learning_rate": max(self._rates, default=0.0),
                "merge_s": time.monotonic() - started - put_s,
                "put_s": put_s,
            }
            if rounding.updated:
                report["rounding_lost_share"] = rounding.lost / rounding.updated
            adapter = self._weights.description if isinstance(self._weights, AdapterWeights) else None
            yield packer.manifest(version, full, changed, report, adapter)
        self._rates.clear()

    def _packed(self, packer: _Packer, rounding: Rounding, full: bool) -> Iterator[Bucket]:
        for name, tensor, can_change in self._weights.tensors(
            self._source, rounding, only_changing=not full, keep=self._keep
        ):
            yield from packer.add(name, tensor, can_change)
        yield from packer.flush()

    def _note(self, name: str, digest: str) -> bool:
        """Whether the tensor differs from the one published before."""
        differs = self._digests.get(name) != digest
        self._digests[name] = digest
        return differs


def publish_as_is(
    tensors: Iterable[tuple[str, Tensor]], version: int, bucket_bytes: int
) -> Iterator[Bucket | WeightsManifest]:
    """A full publish of tensors that are merged and rounded already: those of an export."""
    with ThreadPoolExecutor(max_workers=1) as hashing:
        packer = _Packer(bucket_bytes, hashing)
        for name, tensor in tensors:
            yield from packer.add(name, tensor, can_change=True)
        yield from packer.flush()
        yield packer.manifest(version, full=True, changed_tensors=0, extra={}, adapter=None)


class _Packer:
    """Groups tensors into buckets; a tensor larger than a bucket gets one of its own."""

    def __init__(self, bucket_bytes: int, hashing: Executor) -> None:
        self._limit = bucket_bytes
        self._hashing = hashing
        self._pending: list[SharedBytes] = []
        self._fill = 0
        self._entries: list[TensorEntry] = []
        self._changing: list[bool] = []
        self._hashed: list[Future[list[str]]] = []

    def add(self, name: str, tensor: Tensor, can_change: bool) -> Iterator[Bucket]:
        data = _bytes(tensor)
        if self._pending and self._fill + data.nbytes > self._limit:
            yield from self.flush()
        entry = TensorEntry(
            name=name,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
            bucket=len(self._hashed),
            index=len(self._pending),
            num_bytes=data.nbytes,
        )
        self._entries.append(entry)
        self._changing.append(can_change)
        self._pending.append(data)
        self._fill += data.nbytes

    def flush(self) -> Iterator[Bucket]:
        """Closes the bucket that is being filled, if it holds anything."""
        if not self._pending:
            return
        bucket = tuple(self._pending)
        self._hashed.append(self._hashing.submit(lambda: [checksum(data) for data in bucket]))
        self._pending, self._fill = [], 0
        yield bucket

    def digests(self) -> Iterator[tuple[str, str]]:
        """Name and digest of the tensors that training can change."""
        digests = chain.from_iterable(hashed.result() for hashed in self._hashed)
        return (
            (entry.name, digest)
            for entry, digest, can_change in zip(self._entries, digests, self._changing, strict=True)
            if can_change
        )

    def manifest(
        self, version: int, full: bool, changed_tensors: int, extra: dict[str, float], adapter: str | None
    ) -> WeightsManifest:
        """Describes what was yielded."""
        return WeightsManifest(
            version=version,
            full=full,
            tensors=tuple(self._entries),
            bucket_checksums=tuple(combined(hashed.result()) for hashed in self._hashed),
            changed_tensors=changed_tensors,
            adapter=adapter,
            extra=extra,
        )


def _bytes(tensor: Tensor) -> SharedBytes:
    """The tensor's bytes without a copy."""
    return SharedBytes.of(tensor.flatten().view(torch.uint8).numpy())
