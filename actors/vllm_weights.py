"""Weights of a running vLLM engine: a published version into its workers, and what says that it is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from actors.weight_buckets import check_number
from protocol.errors import SyncError
from protocol.weights import Bucket, WeightsManifest


def load(engine: Any, manifest: WeightsManifest, buckets: Sequence[Bucket]) -> tuple[str, ...]:
    """Digests of the bytes that every worker loaded, one per bucket. SyncError when workers differ."""
    call = engine.collective_rpc
    call("start_weight_update")
    for update in _updates(manifest, buckets):
        call("update_weights", args=(update,))
    call("finish_weight_update")
    return agreed(call("received_checksums"), manifest.version)


def drop_caches(engine: Any, version: int, num_running: int) -> None:
    """What older weights computed must not answer for the new ones: prompt prefixes, then image embeddings. Running
    requests are preempted: their keys and values are computed again, with the new weights."""
    if not engine.reset_prefix_cache(reset_running_requests=True):
        raise SyncError(
            f"version {version}: vLLM kept its prefix cache ({num_running} requests in flight); "
            "cached prefixes would answer with old weights: restart this engine"
        )
    engine.reset_encoder_cache()


def checksums(engine: Any) -> dict[str, str]:
    """vLLM's own digest of every tensor that it serves; on CPU linear weights are repacked and not among them."""
    per_worker: list[dict[str, str]] = engine.collective_rpc("compute_weight_checksums")
    return {name: digest for worker in per_worker for name, digest in worker.items()}


def agreed(per_worker: Sequence[tuple[str, ...]], version: int) -> tuple[str, ...]:
    """The digests that every worker of the engine reports."""
    if len(set(per_worker)) > 1:
        raise SyncError(
            f"version {version}: the engine's {len(per_worker)} workers received different bytes: {per_worker}; "
            "vLLM's transport between them lost something: restart this engine"
        )
    return per_worker[0]


def _updates(manifest: WeightsManifest, buckets: Sequence[Bucket]) -> list[dict[str, Any]]:
    """`vllm_plugin.BucketUpdateInfo` of each bucket; one without a bucket where the workers receive a broadcast."""
    if manifest.group is not None:
        return [{"manifest": manifest}]
    check_number(manifest, buckets)
    return [{"manifest": manifest, "number": number, "bucket": bucket} for number, bucket in enumerate(buckets)]
