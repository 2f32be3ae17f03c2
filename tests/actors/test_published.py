"""What a restarted engine is given: the newest bytes of every tensor."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.published import PublishedWeights
from protocol.contracts import TensorEntry, WeightsManifest


def publish(version: int, names: list[str], *, full: bool = False) -> tuple[WeightsManifest, list[str]]:
    """One bucket per tensor; its reference and checksum name the version."""
    tensors = tuple(
        TensorEntry(name=name, dtype="float32", shape=(1,), bucket=i, offset=0, num_bytes=4)
        for i, name in enumerate(names)
    )
    refs = [f"{name}@{version}" for name in names]
    manifest = WeightsManifest(
        version=version, full=full, tensors=tensors, bucket_checksums=tuple(refs), changed_tensors=len(names)
    )
    return manifest, refs


def located(weights: PublishedWeights) -> dict[str, str]:
    manifest, refs = weights.full()
    assert manifest.bucket_checksums == tuple(refs), "each bucket keeps its own checksum"
    return {entry.name: refs[entry.bucket] for entry in manifest.tensors}


def test_the_first_publish_must_be_full() -> None:
    with pytest.raises(AssertionError, match="full"):
        PublishedWeights().update(*publish(0, ["a"]))


def test_a_partial_publish_replaces_only_its_tensors() -> None:
    weights = PublishedWeights()
    weights.update(*publish(0, ["a", "b"], full=True))
    weights.update(*publish(1, ["b"]))

    assert weights.version == 1
    assert located(weights) == {"a": "a@0", "b": "b@1"}
    assert weights.full()[0].full


def test_a_full_publish_forgets_what_it_does_not_hold() -> None:
    weights = PublishedWeights()
    weights.update(*publish(0, ["a", "b"], full=True))
    weights.update(*publish(1, ["a"], full=True))

    assert located(weights) == {"a": "a@1"}


@given(st.lists(st.sets(st.sampled_from("abcd")), max_size=8))
def test_the_composite_holds_the_last_publish_of_every_tensor(changes: list[set[str]]) -> None:
    weights = PublishedWeights()
    weights.update(*publish(0, list("abcd"), full=True))
    expected = {name: f"{name}@0" for name in "abcd"}
    for version, names in enumerate(changes, start=1):
        weights.update(*publish(version, sorted(names)))
        expected |= {name: f"{name}@{version}" for name in names}

    assert located(weights) == expected
