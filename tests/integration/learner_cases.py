"""Many learner configurations in the same few processes: importing the stack once is most of a rank's start."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from learner.model import HeadOutput
from learner.prompt_encoder import Prompt
from learner.ranks import LearnerRank
from learner.results import RankStep
from learner.settings import LearnerSettings, TunerSettings
from protocol.carry import plan_carry
from protocol.contracts import RequestKey
from protocol.segments import PackPlan, Segment
from protocol.weights import WeightsManifest
from tests.learner import tiny

TWO_PACKS = PackPlan(micro_batches=(((0, 1),), ((2, 3),)))
ONE_PACK = PackPlan(micro_batches=(((0, 1, 2, 3),),))
SHARDED = PackPlan(micro_batches=(((0, 1), (2,)), ((3,), ())))
"""One rank has nothing to do in the second micro-batch."""
SHARDED_OTHERWISE = PackPlan(micro_batches=(((3,), (0, 1, 2)),))
LORA = TunerSettings(kind="lora", freeze_aligner=False)
DORA = replace(LORA, use_dora=True)
Array = np.ndarray[Any, Any]


@contextmanager
def small_cluster(folder: Path) -> Iterator[None]:
    """A Ray of its own with two processors; `folder` holds its sockets: keep its path short."""
    memory = 200 * 2**20
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=memory, _temp_dir=str(folder))
    yield
    ray.shutdown()


def four_segments(folder: Path) -> list[Segment]:
    """Of four lengths, shortest first."""
    return [tiny.make_segment(folder, number, tail=8 + 3 * number) for number in range(4)]


def case_settings(start: Path, stage: int, tuner: TunerSettings = tiny.FULL, **changes: object) -> LearnerSettings:
    """One optimizer for all cases; `changes` go to `LearnerSettings`."""
    # Gradients that are zero in exact arithmetic (the bias of attention keys) are noise of 1e-9 here; AdamW would
    # divide them by their own size and make a full step of them, so epsilon stands well above.
    optimizer = tiny.optimizer(max_grad_norm=1.0, epsilon=1e-4)
    values = {"tuner": tuner, "deepspeed": {"zero_optimization": {"stage": stage}}, "optimizer": optimizer}
    return tiny.settings(start, **(values | changes))


CARRIED_WHOLE = (PackPlan(micro_batches=(((0, 1, 2),),)), PackPlan(micro_batches=(((0, 1, 3),),)))
"""What `carried_windows` trains in its two steps, planned without a carry."""


def carried_windows(segments: Sequence[Segment], num_ranks: int) -> list[PackPlan]:
    """Two windows: the last of four segments waits for the second, which holds the first two again."""
    sizes = [len(segment.input_ids) for segment in segments]
    capacity = sum(sizes[:3]) if num_ranks == 1 else sum(sizes[:2])
    first = plan_carry(sizes, capacity=capacity, num_ranks=num_ranks, min_fill=1.0)
    assert first.carried == (3,), "else the case shows nothing"
    entries = [*first.carried, 0, 1]
    lengths = [sizes[position] for position in entries]
    second = plan_carry(
        lengths, capacity=capacity, num_ranks=num_ranks, min_fill=1.0, must_train=len(first.carried), flush=True
    )
    rows = (tuple(tuple(entries[position] for position in pack) for pack in row) for row in second.micro_batches)
    return [first, PackPlan(micro_batches=tuple(rows))]


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

    def step_reading_late(self, plan: PackPlan, segments: Sequence[Segment], late: RequestKey) -> RankStep:
        """As `step`, but the pixels of `late` cannot be read before a forward has begun."""
        encoder, engine, begun = self._ready._encoder, self._ready._engine, threading.Event()
        encode, forward = encoder._encode, engine.forward

        def read(segment: Segment) -> Prompt:
            assert segment.key != late or begun.wait(60), "no forward began before all pixels were read"
            return encode(segment)

        def begin(*arguments: Any) -> HeadOutput:
            begun.set()
            return forward(*arguments)

        encoder._encode, engine.forward = read, begin  # type: ignore[method-assign]
        return self.step(plan, segments)

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


def assert_same(found: list[Outcome], reference: list[Outcome]) -> None:
    """Same losses, gradient norms (1e-5) and published weights (1e-5 of each tensor's largest element)."""
    for step in range(len(reference[0].losses)):
        total = sum(outcome.losses[step] for outcome in found)
        assert total == pytest.approx(sum(outcome.losses[step] for outcome in reference), rel=1e-5)
        assert found[0].norms[step] == pytest.approx(reference[0].norms[step], rel=1e-5)
    assert found[0].weights.keys() == reference[0].weights.keys()
    for name, weights in reference[0].weights.items():
        difference = np.abs(found[0].weights[name] - weights).max()
        assert difference <= 1e-5 * max(1e-2, np.abs(weights).max()), name


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
        return list(ray.get([getattr(a, method).remote(*arguments) for a in self.actors], timeout=240))

    def close(self) -> None:
        for actor in self.actors:
            ray.kill(actor)


def assert_skips(two: Ranks, settings: LearnerSettings, segments: Sequence[Segment]) -> None:
    """A step with a loss that is not finite moves nothing and names the segment; the next step is as a first one."""
    poisoned = replace(segments[3], input_ids=segments[3].input_ids.copy())
    byte = int(np.setdiff1d(np.arange(256), np.concatenate([segment.input_ids for segment in segments]))[0])
    poisoned.input_ids[-4] = byte
    two.prepare(settings)
    two.call("poison", byte)
    before = two.publish()
    bad = two.step(SHARDED, [*segments[:3], poisoned])
    assert [rank.skipped for rank in bad] == [True, True]
    assert [list(rank.non_finite_keys) for rank in bad] == [[segments[3].key], []]
    assert all(np.array_equal(after, before[name], equal_nan=True) for name, after in two.publish().items())
    good = two.step(SHARDED, segments)
    assert [rank.skipped for rank in good] == [False, False]
    two.prepare(settings)
    reference = two.step(SHARDED, segments)
    assert [rank.loss for rank in good] == pytest.approx([rank.loss for rank in reference], rel=1e-6)
    assert good[0].grad_norm == pytest.approx(reference[0].grad_norm, rel=1e-5)
