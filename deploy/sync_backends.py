"""How a publish reaches the engines: the registry of `sync.backend`.

`object_store`: the learner's buckets are objects; any engine fetches them, also one that was restarted later.
`nccl`: the learner broadcasts to a group of engines. One that comes back later is not in that group and cannot read a
publish of the past: the pool says so (`awaits_full`), and the loop publishes the version to it once more, in full.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from actors.loop import Learner, StepOutcome
from actors.pool import RolloutPool
from learner.group import LearnerGroup
from protocol.config import RunConfig
from protocol.segments import PackPlan
from protocol.sync_group import GroupPlanner
from protocol.weights import WeightsManifest


def publishing_learner(config: RunConfig, learner: LearnerGroup, pool: RolloutPool) -> Learner:
    """The learner as the loop sees it, with the publish of `sync.backend`."""
    return BACKENDS[config.sync.backend](config, learner, pool)


class BroadcastingLearner:
    """`LearnerGroup` whose publish goes to the live engines by broadcast."""

    def __init__(self, learner: LearnerGroup, pool: RolloutPool, planner: GroupPlanner) -> None:
        self._learner = learner
        self._pool = pool
        self._planner = planner

    def train_step(self, plan: PackPlan, segment_refs: Sequence[Any]) -> StepOutcome:
        return self._learner.train_step(plan, segment_refs)

    def publish(self, version: int, full: bool) -> tuple[WeightsManifest, list[Any]]:
        """The manifest names the group, and there is nothing to fetch. Tell the engines at once: they are awaited."""
        group = self._planner.group_for(self._pool.recipients(full))
        return self._learner.broadcast(version, full, group), []


def _object_store(config: RunConfig, learner: LearnerGroup, pool: RolloutPool) -> Learner:
    return learner


def _nccl(config: RunConfig, learner: LearnerGroup, pool: RolloutPool) -> Learner:
    ranks = config.matching.vllm.tensor_parallel_size
    return BroadcastingLearner(learner, pool, GroupPlanner(ranks, config.sync.timeout_s, learner.rendezvous))


BACKENDS: dict[str, Callable[[RunConfig, LearnerGroup, RolloutPool], Learner]] = {
    "object_store": _object_store,
    "nccl": _nccl,
}
