"""Many learner configurations in the same few processes: importing the stack once is most of a rank's start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray

from learner.ranks import LearnerRank
from learner.results import RankStep
from learner.settings import LearnerSettings
from protocol.contracts import PackPlan, Segment, WeightsManifest

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one rank saw of a case; weights only on rank 0."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, Array]
    manifest: WeightsManifest | None


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
        self.prepare(settings)
        if resume is not None:
            self.load_checkpoint(resume)
        steps = [self.step(plan, segments) for plan in plans]
        weights, manifest = self.publish_all()
        return Outcome(
            losses=[step.loss for step in steps],
            norms=[step.grad_norm for step in steps],
            weights=weights,
            manifest=manifest,
        )

    def prepare(self, settings: LearnerSettings) -> None:
        """A fresh worker in place of the last one."""
        from learner.worker import LearnerWorker

        self._worker = LearnerWorker(settings)

    def step(self, plan: PackPlan, segments: Sequence[Segment]) -> RankStep:
        return self._ready.train_step([[segments[at] for at in packs[self._rank]] for packs in plan.micro_batches])

    def publish_all(self) -> tuple[dict[str, Array], WeightsManifest | None]:
        """Every tensor, on rank 0."""
        *buckets, manifest = [*self._ready.publish(1, True)] or [None]
        return ({} if manifest is None else unpack(manifest, buckets)), manifest

    def poison(self, token_id: int) -> None:
        """Makes the embedding of one token not a number."""
        import deepspeed
        import torch

        policy, stage = self._ready._policy, self._ready._settings.zero_stage
        weight = policy.core.get_input_embeddings().weight
        with deepspeed.zero.GatheredParameters([weight], modifier_rank=0, enabled=stage == 3), torch.no_grad():
            if weight.numel():
                weight[token_id] = torch.nan


def unpack(manifest: WeightsManifest, buckets: Sequence[Any]) -> dict[str, Array]:
    """fp32 tensors by name, as a receiver would read them."""
    found = {}
    for entry in manifest.tensors:
        raw = buckets[entry.bucket][entry.index]
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
        return self.call("case", *arguments)

    def prepare(self, settings: LearnerSettings) -> None:
        self.call("prepare", settings)

    def step(self, plan: PackPlan, segments: Sequence[Segment]) -> list[RankStep]:
        return self.call("step", plan, segments)

    def publish(self) -> dict[str, Array]:
        weights: dict[str, Array] = self.call("publish_all")[0][0]
        return weights

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return list(ray.get([getattr(a, method).remote(*arguments) for a in self.actors], timeout=120))

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)
