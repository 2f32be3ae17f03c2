"""One published version of the weights: where its bytes lie, and what their reader must find there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Bucket = tuple[npt.NDArray[np.uint8], ...]
"""Some tensors' bytes, one flat array each: one object of the object store, which keeps each array aligned."""


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """Where one tensor lies: its bytes are array `index` of bucket `bucket`."""

    name: str
    dtype: str
    """Torch's short name: `bfloat16`, `float32`."""
    shape: tuple[int, ...]
    bucket: int
    index: int
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncGroup:
    """One generation of the group that a version is broadcast to; see `protocol.sync_group`."""

    generation: int
    address: str
    port: int
    world_size: int
    """The learner's first rank, and the ranks of all engines in the group."""
    offsets: Mapping[str, int]
    """First rank of each engine, by the name of its process, which a restart changes."""
    timeout_s: float
    rank_offset: int = 0
    """The reader's own entry of `offsets`; set by whoever hands the group to an engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsManifest:
    """Describes one published version, whose buckets are in the object store."""

    version: int
    full: bool
    """False: only tensors that can change, valid on top of an engine that once took a full sync."""
    tensors: tuple[TensorEntry, ...]
    bucket_checksums: tuple[str, ...]
    """Hex digest of each bucket, recomputed by the receiver."""
    changed_tensors: int
    """How many differ from the version before; 0 after an optimizer step at a real rate is an error (SPEC A17)."""
    adapter: str | None = None
    """The text of peft's `adapter_config.json` where the tensors are an adapter on the start checkpoint; None where
    they are the checkpoint's own, merged."""
    group: SyncGroup | None = None
    """Whom the buckets are broadcast to; None where they are objects in the object store."""
    extra: dict[str, float] = field(default_factory=dict)
    """Timings and rounding report of the producer, `optimizer_steps` since the last publish and the
    `largest_learning_rate` in them."""

    def reaches(self, process: str) -> bool:
        """Whether this process can read the buckets: a broadcast goes to the processes of its group only."""
        return self.group is None or process in self.group.offsets
