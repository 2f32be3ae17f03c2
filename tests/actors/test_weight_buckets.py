"""Received buckets: what is lost or changed is named, and views show the bucket's own memory."""

from __future__ import annotations

import numpy as np
import pytest

from actors.weight_buckets import bucket_views, tensor_views, verify_buckets
from learner.publisher import publish_as_is
from protocol.errors import SyncError
from protocol.weights import Bucket, WeightsManifest


def publish() -> tuple[WeightsManifest, list[Bucket]]:
    """Five tensors in three buckets."""
    import torch

    tensors = [(f"layer.{number}", torch.arange(20.0) + number) for number in range(5)]
    items = list(publish_as_is(tensors, 3, 160))
    manifest = items.pop()
    assert isinstance(manifest, WeightsManifest)
    return manifest, [item for item in items if isinstance(item, tuple)]


def test_buckets_are_checked_one_by_one_and_a_changed_one_is_named() -> None:
    manifest, buckets = publish()
    assert verify_buckets(manifest, buckets) == manifest.bucket_checksums
    changed = tuple(np.array(array) for array in buckets[1])
    changed[0][3] ^= 1
    with pytest.raises(SyncError, match="version 3: weight bucket 1 of 3 arrived with another checksum"):
        verify_buckets(manifest, [buckets[0], changed, buckets[2]])


def test_a_missing_bucket_is_no_publish() -> None:
    manifest, buckets = publish()
    with pytest.raises(SyncError, match="2 weight buckets arrived, the manifest names 3"):
        verify_buckets(manifest, buckets[:2])


def test_the_views_of_single_buckets_are_those_of_all() -> None:
    manifest, buckets = publish()
    whole = list(tensor_views(manifest, buckets))
    single = [pair for number, bucket in enumerate(buckets) for pair in bucket_views(manifest, number, bucket)]
    assert [name for name, _ in whole] == [name for name, _ in single] == [f"layer.{number}" for number in range(5)]
    for (_, one), (_, other) in zip(whole, single, strict=True):
        assert one.data_ptr() == other.data_ptr()
        assert one.tolist() == other.tolist()
