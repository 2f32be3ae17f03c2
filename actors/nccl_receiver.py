"""An engine worker's end of `sync.backend: nccl`; `learner.nccl_sender` has the table of waits. Not verified on a GPU.

The bytes of a bucket arrive in the layout of `protocol.sync_group.layout`; digests are found from a host copy, the
model loads from the device's. Nothing here has a deadline: the pool kills an engine that does not attest in time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import Any, Protocol

import torch

from actors.weight_buckets import verify_bucket
from protocol.sync_group import layout
from protocol.weights import SyncGroup, TensorEntry, WeightsManifest

Load = Callable[[Iterator[tuple[str, torch.Tensor]]], object]


class ReceivingEnd(Protocol):
    """A communicator of one group, any rank but 0."""

    def receive(self, num_bytes: int) -> torch.Tensor:
        """[num_bytes] uint8, complete."""
        ...

    def close(self) -> None: ...


class NcclReceiver:
    """Keeps the communicator of the present generation."""

    def __init__(self, open_end: Callable[[SyncGroup], ReceivingEnd]) -> None:
        self._open = open_end
        self._end: ReceivingEnd | None = None
        self._generation = 0

    def receive(self, manifest: WeightsManifest, load: Load) -> tuple[str, ...]:
        """Hands every bucket's tensors to `load`; digests of what arrived, SyncError at the first that differs."""
        assert manifest.group is not None
        end = self._joined(manifest.group)
        digests = []
        for number, entries in groupby(manifest.tensors, key=lambda entry: entry.bucket):
            tensors = list(entries)
            offsets, total = layout([entry.num_bytes for entry in tensors])
            buffer = end.receive(total)
            host = buffer.cpu().numpy()
            arrays = (host[at : at + entry.num_bytes] for at, entry in zip(offsets, tensors, strict=True))
            digests.append(verify_bucket(manifest, number, tuple(arrays)))
            load(_views(tensors, offsets, buffer))
        return tuple(digests)

    def close(self) -> None:
        if self._end is not None:
            self._end.close()
        self._end, self._generation = None, 0

    def _joined(self, group: SyncGroup) -> ReceivingEnd:
        if self._end is None or self._generation != group.generation:
            self.close()
            self._end, self._generation = self._open(group), group.generation
        return self._end


def _views(
    tensors: Sequence[TensorEntry], offsets: Sequence[int], buffer: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor]]:
    for at, entry in zip(offsets, tensors, strict=True):
        flat = buffer[at : at + entry.num_bytes].view(getattr(torch, entry.dtype))
        yield entry.name, flat.view(entry.shape)


class VllmEnd:
    """vLLM's communicator; the worker's own rank is added to the engine's offset there."""

    def __init__(self, group: SyncGroup, parallel_config: Any) -> None:
        from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, worker_init_process_group

        info = NCCLWeightTransferInitInfo(
            master_address=group.address,
            master_port=group.port,
            rank_offset=group.rank_offset,
            world_size=group.world_size,
        )
        self._group: Any = worker_init_process_group(info, parallel_config)

    def receive(self, num_bytes: int) -> torch.Tensor:
        buffer = torch.empty(num_bytes, dtype=torch.uint8, device=self._group.device)
        self._group.broadcast(buffer, src=0)
        torch.cuda.current_stream().synchronize()
        return buffer

    def close(self) -> None:
        self._group.destroy()
