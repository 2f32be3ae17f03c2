"""Serving an adapter instead of merged weights (SPEC A18): `vllm.enable_lora`.

vLLM reads adapters from a peft folder, so the published tensors pass through one in memory (/dev/shm where it exists),
for as long as the load takes. There is one adapter, replaced in place at every publish, and every request names it: an
engine attaches no adapter to a request that does not ask.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.weight_buckets import tensor_views, verify_buckets
from protocol.config import RunConfig
from protocol.errors import SyncError
from protocol.weights import Bucket, WeightsManifest

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Largest ranks that vLLM can be started for; the configuration's rules refuse more than the last."""


def lora_options(config: RunConfig) -> dict[str, Any]:
    """vLLM engine arguments for the run's adapter; empty when merged weights are served."""
    if not config.matching.vllm.enable_lora:
        return {}
    tuner = config.tuner
    return {
        "max_lora_rank": next(rank for rank in RANKS if rank >= tuner.lora_rank),
        "max_loras": 1,
        "enable_tower_connector_lora": not (tuner.freeze_vit and tuner.freeze_aligner),
    }


def adapter_request(folder: str = "loaded-before", *, replace: bool = False) -> Any:
    """What a request names. `folder` is read only when the adapter is loaded; one that is not loaded is an error."""
    from vllm.lora.request import LoRARequest

    return LoRARequest("policy", 1, folder, load_inplace=replace)


def load_adapter(engine: Any, manifest: WeightsManifest, buckets: Sequence[Bucket]) -> tuple[str, ...]:
    """Puts a published adapter in the place of the one before; digests of what was received.

    SyncError where bytes are not those of the manifest, or vLLM does not take the adapter.
    """
    from safetensors.torch import save_file

    assert manifest.adapter is not None
    received = verify_buckets(manifest, buckets)
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory, prefix="rollmatch-adapter-") as folder:
        save_file(dict(tensor_views(manifest, buckets)), Path(folder) / "adapter_model.safetensors")
        (Path(folder) / "adapter_config.json").write_text(manifest.adapter, encoding="utf-8")
        if not engine.add_lora(adapter_request(folder, replace=True)):
            raise SyncError(
                f"version {manifest.version}: vLLM did not load the adapter of {len(manifest.tensors)} tensors; "
                "restart this engine, or set vllm.enable_lora to false (merged weights)"
            )
    return received
