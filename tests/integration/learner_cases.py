"""Many learner configurations in the same few processes: importing the stack once is most of a rank's start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from learner.ranks import LearnerRank
from learner.settings import LearnerSettings
from protocol.contracts import PackPlan, Segment, WeightsManifest


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rank saw of a case; weights only on rank 0."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, np.ndarray[Any, Any]]
    manifest: WeightsManifest | None
    skipped: list[bool]


class CaseRank(LearnerRank):
    """A learner rank that is given one worker after the other."""

    def case(
        self,
        settings: LearnerSettings,
        plans: Sequence[PackPlan],
        segments: Sequence[Segment],
        resume: Path | None = None,
    ) -> Outcome:
        """Trains one optimizer step per plan and publishes everything."""
        from learner.worker import LearnerWorker

        worker = LearnerWorker(settings)
        if resume is not None:
            worker.load_checkpoint(resume)
        steps = [
            worker.train_step([[segments[at] for at in packs[self._rank]] for packs in plan.micro_batches])
            for plan in plans
        ]
        *buckets, manifest = [*worker.publish(1, True)] or [None]
        self._worker = worker
        return Outcome(
            losses=[step.loss for step in steps],
            norms=[step.grad_norm for step in steps],
            weights={} if manifest is None else unpack(manifest, buckets),
            manifest=manifest,
            skipped=[step.skipped for step in steps],
        )


def unpack(manifest: WeightsManifest, buckets: Sequence[np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    """fp32 tensors by name, as a receiver would read them."""
    found = {}
    for entry in manifest.tensors:
        raw = buckets[entry.bucket][entry.offset : entry.offset + entry.num_bytes]
        if entry.dtype == "bfloat16":  # the upper half of an fp32
            values = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = raw.view(np.float32)
        found[entry.name] = values.reshape(entry.shape)
    return found


class Ranks:
    """One process per rank, joined once."""

    def __init__(self, world_size: int, settings: LearnerSettings) -> None:
        actor = ray.remote(CaseRank).options(num_cpus=0.5)
        self.actors = [actor.remote(rank, world_size, 0) for rank in range(world_size)]
        _, address, port = ray.get(self.actors[0].where.remote(), timeout=120)
        starts = [a.start.remote(settings, address, port, r, world_size) for r, a in enumerate(self.actors)]
        ray.get(starts, timeout=300)

    def case(self, *arguments: Any) -> list[Outcome]:
        return list(ray.get([actor.case.remote(*arguments) for actor in self.actors], timeout=120))

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return list(ray.get([getattr(a, method).remote(*arguments) for a in self.actors], timeout=120))

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)
