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


def verify_buckets(manifest: WeightsManifest, buckets: Sequence[Bucket]) -> tuple[str, ...]:
    """Digests of the received bytes; SyncError where they are not those of the manifest."""
    digests = tuple(bucket_checksum(bucket) for bucket in buckets)
    if digests != manifest.bucket_checksums:
        wrong = [i for i, (a, b) in enumerate(zip(digests, manifest.bucket_checksums, strict=False)) if a != b]
        raise SyncError(
            f"version {manifest.version}: {len(wrong)} of {len(manifest.bucket_checksums)} weight buckets arrived with "
            f"another checksum (got {len(digests)} buckets; first wrong: {wrong[:1]}); "
            "the object store or the network changed bytes: restart this engine"
        )
    return digests


def tensor_views(manifest: WeightsManifest, buckets: Sequence[Bucket]) -> Iterator[tuple[str, torch.Tensor]]:
    """Named tensors over the buckets' memory: nothing is copied here, the model's loader copies once."""
    import torch  # here, so that the scripted engine, which only counts bytes, starts without it

    with warnings.catch_warnings():
        # Shared memory is read-only and nobody writes to it: torch cannot know.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        for entry in manifest.tensors:
            raw = buckets[entry.bucket][entry.index]
            flat = torch.frombuffer(raw.data, dtype=getattr(torch, entry.dtype))
            yield entry.name, flat.view(entry.shape)
