"""The part of rollmatch that lives inside a vLLM worker: a weight-transfer engine that loads from flat byte buckets.

vLLM's lifecycle, driven by `vllm_engine.load_weights` between two scheduler steps:

    start_weight_update      layerwise reload begins: repacked weights become loadable again
    update_weights, once per bucket: checked bytes → tensor views without a copy → the model's own loader
    finish_weight_update     weights are repacked; the version is set by the caller

Registered twice on purpose: by the `vllm.general_plugins` entry point where the package is installed, and by being
imported as `worker_extension_cls` where it is not (a job's working directory). This file is the only one that knows
vLLM's transfer API, which has moved in most minor releases.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from actors.nccl_receiver import NcclReceiver, VllmEnd
from actors.weight_buckets import bucket_views, verify_bucket
from protocol.errors import SyncError
from protocol.weights import Bucket, WeightsManifest

BACKEND = "rollmatch"
"""Name of the transfer backend in vLLM's registry."""


@dataclass
class BucketInitInfo(WeightTransferInitInfo):  # type: ignore[misc]
    """Nothing to rendezvous: the bytes are already in this process."""


@dataclass
class BucketUpdateInfo(WeightTransferUpdateInfo):  # type: ignore[misc]
    """One bucket of a published version, or the whole version where it is broadcast.

    The worker processes of a tensor-parallel engine are sent copies: of one bucket at a time, never of a whole model.
    """

    manifest: WeightsManifest
    number: int = 0
    bucket: Bucket = ()


class BucketTransferEngine(WeightTransferEngine[BucketInitInfo, BucketUpdateInfo]):  # type: ignore[misc]
    """Loads checkpoint-format tensors from byte buckets, each after checking its digest."""

    init_info_cls = BucketInitInfo
    update_info_cls = BucketUpdateInfo

    def init_transfer_engine(self, init_info: BucketInitInfo) -> None:
        self.received: tuple[str, ...] = ()
        self._receiver = NcclReceiver(lambda group: VllmEnd(group, self.parallel_config))

    def start_weight_update(self) -> None:
        self.received = ()
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: BucketUpdateInfo) -> None:
        manifest, number, bucket = update_info.manifest, update_info.number, update_info.bucket
        if manifest.group is not None:
            self.received = self._receiver.receive(manifest, self.model.load_weights)
            return
        self.received += (verify_bucket(manifest, number, bucket),)
        self.model.load_weights(bucket_views(manifest, number, bucket))

    def finish_weight_update(self) -> None:
        _require_whole_layers(self.model)
        finalize_layerwise_reload(self.model, self.model_config)
        _repack_tied_heads(self.model)

    def shutdown(self) -> None:
        self._receiver.close()


class WorkerExtension:
    """Mixed into vLLM's worker: what it received last, for attestation."""

    weight_transfer_engine: Any

    def received_checksums(self) -> tuple[str, ...]:
        received: tuple[str, ...] = self.weight_transfer_engine.received
        return received


def _require_whole_layers(model: torch.nn.Module) -> None:
    """SyncError for a linear layer that got some of its tensors only: vLLM would fill the rest with garbage.

    A fused layer holds several tensors of the checkpoint (q, k and v; gate and up; weight and bias), so a publish
    must hold all of them or none.
    """
    for name, layer in model.named_modules():
        info = get_layerwise_info(layer)
        if isinstance(layer, LinearBase) and info.can_load() and 0 < info.load_numel < info.load_numel_total:
            raise SyncError(
                f"{name}: {info.load_numel} of {info.load_numel_total} elements were published; the learner's "
                "publisher must send every tensor of a fused layer when one of them changed"
            )


def _repack_tied_heads(model: torch.nn.Module) -> None:
    """Rebuilds what the CPU backend packed from a tied embedding.

    The checkpoint has no tensor of a tied head, so vLLM's reload does not visit it: its weight follows the embedding,
    which shares the storage, but the packed copy that the CPU kernel multiplies with would stay at the old version.
    """
    for layer in model.modules():
        if isinstance(layer, ParallelLMHead) and hasattr(layer, "cpu_linear"):
            layer.quant_method.process_weights_after_loading(layer)


def register() -> None:
    """Entry point of `vllm.general_plugins`; harmless when called again in the same process."""
    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, BucketTransferEngine)


register()
