"""What a restarted engine is given: the newest bytes of every tensor."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engine import LoadReport
from actors.published import PublishedWeights, check_attested, check_changed, load_metrics, publish_metrics
from protocol.errors import NothingChangedError, SyncError
from protocol.weights import TensorEntry, WeightsManifest


def publish(version: int, names: list[str], *, full: bool = False) -> tuple[WeightsManifest, list[str]]:
    """One bucket per tensor; its reference and checksum name the version."""
    tensors = tuple(
        TensorEntry(name=name, dtype="float32", shape=(1,), bucket=i, index=0, num_bytes=4)
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


def test_a_publish_tells_its_size_and_what_it_cost_the_learner() -> None:
    manifest, _ = publish(3, ["a", "b"])
    manifest = replace(manifest, extra={"merge_s": 0.5, "put_s": 0.25, "optimizer_steps": 1.0})
    assert publish_metrics(manifest) == {
        "sync/merge_s": 0.5,
        "sync/put_s": 0.25,
        "sync/bytes": 8.0,
        "sync/changed_tensors": 2.0,
    }


def test_load_metrics_take_the_slowest_engine_of_each_phase() -> None:
    seconds = [(1.0, 5.0, 0.1), (2.0, 4.0, 0.2)]
    reports = [
        LoadReport(version=3, bucket_checksums=(), fetch_seconds=a, load_seconds=b, resume_seconds=c)
        for a, b, c in seconds
    ]
    assert load_metrics(reports) == {"sync/fetch_s": 2.0, "sync/load_s": 5.0, "sync/resume_s": 0.2}


@pytest.mark.parametrize(
    ("version", "checksums"), [(2, ("a@1", "b@1")), (1, ("a@1", "b@0")), (1, ("a@1",)), (1, ("b@1", "a@1"))]
)
def test_an_engine_that_serves_another_version_or_other_bytes_is_refused(
    version: int, checksums: tuple[str, ...]
) -> None:
    manifest, _ = publish(1, ["a", "b"])
    served = LoadReport(version=1, bucket_checksums=("a@1", "b@1"), load_seconds=0.0)
    check_attested("actor-0", served, manifest)
    with pytest.raises(SyncError, match=f"actor-0: serves version {version}"):
        check_attested("actor-0", replace(served, version=version, bucket_checksums=checksums), manifest)


def test_a_publish_may_change_nothing_only_where_every_step_of_the_window_was_skipped_or_had_no_rate(
    caplog: pytest.LogCaptureFixture,
) -> None:
    manifest = replace(publish(1, ["a"])[0], changed_tensors=0)
    check_changed(replace(manifest, extra={"optimizer_steps": 0.0}))
    check_changed(replace(manifest, extra={"optimizer_steps": 2.0, "largest_learning_rate": 0.0}))
    assert not caplog.text
    check_changed(replace(manifest, changed_tensors=1))
    for extra in ({}, {"optimizer_steps": 1.0}):
        with pytest.raises(NothingChangedError, match="0 of 1 published tensors"):
            check_changed(replace(manifest, extra=extra))


def test_a_publish_may_change_nothing_with_a_warning_where_its_largest_rate_is_lost_in_rounding(
    caplog: pytest.LogCaptureFixture,
) -> None:
    manifest = replace(publish(7, ["a"])[0], changed_tensors=0)
    check_changed(replace(manifest, extra={"optimizer_steps": 1.0, "largest_learning_rate": 1.5e-11}))
    assert "version 7: 0 of 1 published tensors changed: rounding hides a learning rate of 1.5e-11" in caplog.text
    for rate in (1e-8, 2e-5):
        with pytest.raises(NothingChangedError, match=f"at a learning rate of {rate:.1e} and 0 of 1"):
            check_changed(replace(manifest, extra={"optimizer_steps": 1.0, "largest_learning_rate": rate}))
