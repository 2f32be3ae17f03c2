"""Published weights as an engine receives them: checked bytes, then named tensors over the same memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from protocol.checksums import bucket_checksum
from protocol.errors import SyncError
from protocol.weights import Bucket, WeightsManifest

if TYPE_CHECKING:
    import torch


def check_number(manifest: WeightsManifest, buckets: Sequence[Bucket]) -> None:
    """SyncError where there are more or fewer buckets than the manifest names."""
    if len(buckets) != len(manifest.bucket_checksums):
        raise SyncError(
            f"version {manifest.version}: {len(buckets)} weight buckets arrived, the manifest names "
            f"{len(manifest.bucket_checksums)}; the object store or the network lost some: restart this engine"
        )


def verify_bucket(manifest: WeightsManifest, number: int, bucket: Bucket) -> str:
    """Digest of the received bytes; SyncError where it is not that of the manifest."""
    digest = bucket_checksum(bucket)
    if digest != manifest.bucket_checksums[number]:
        raise SyncError(
            f"version {manifest.version}: weight bucket {number} of {len(manifest.bucket_checksums)} arrived with "
            "another checksum; what carried it (sync.backend) changed bytes: restart this engine"
        )
    return digest


def verify_buckets(manifest: WeightsManifest, buckets: Sequence[Bucket]) -> tuple[str, ...]:
    """Digests of all buckets; SyncError where they are not those of the manifest."""
    check_number(manifest, buckets)
    return tuple(verify_bucket(manifest, number, bucket) for number, bucket in enumerate(buckets))


def tensor_views(manifest: WeightsManifest, buckets: Sequence[Bucket]) -> Iterator[tuple[str, torch.Tensor]]:
    """Named tensors over the buckets' memory: nothing is copied here, the model's loader copies once."""
    for number, bucket in enumerate(buckets):
        yield from bucket_views(manifest, number, bucket)


def bucket_views(manifest: WeightsManifest, number: int, bucket: Bucket) -> Iterator[tuple[str, torch.Tensor]]:
    """`tensor_views` of one bucket."""
    import torch  # here, so that the scripted engine, which only counts bytes, starts without it

    with warnings.catch_warnings():
        # Shared memory is read-only and nobody writes to it: torch cannot know.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        for entry in manifest.tensors:
            if entry.bucket == number:
                flat = torch.frombuffer(bucket[entry.index].data, dtype=getattr(torch, entry.dtype))
                yield entry.name, flat.view(entry.shape)
