"""Starts rollout actors and learner ranks, side by side, in the room that was reserved for them."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any

import ray

from actors.pool import RolloutPool
from actors.rollout_actor import THREADS, RolloutActor
from actors.settings import ActorSettings
from actors.supervision import PoolSettings
from actors.vllm_environment import engine_environment
from deploy.placement import Placement
from learner.group import LearnerGroup
from learner.settings import LearnerSettings
from protocol.config import RunConfig
from protocol.contracts import EVALUATION_EPOCH, Record, RequestKey, RolloutRequest
from protocol.records import RecordFile


def start_service(
    config: RunConfig, records: RecordFile, placement: Placement, stack: contextlib.ExitStack
) -> tuple[RolloutPool, LearnerGroup]:
    """Engines and ranks start side by side; both are closed with `stack`, also when one of them fails."""
    cluster = config.cluster
    threads = stack.enter_context(ThreadPoolExecutor(max_workers=2))  # left last: closing ends what they wait for
    learner = LearnerGroup(
        LearnerSettings.from_config(config, num_steps=config.num_optimizer_steps(len(records))),
        cluster.num_learners,
        cpus_per_worker=cluster.cpus_per_learner,
        gpus_per_worker=cluster.gpus_per_learner,
        place=partial(placement.options, "learner"),
        start_timeout_s=cluster.step_timeout_s,
        step_timeout_s=cluster.step_timeout_s,
    )
    stack.callback(learner.close)
    pool = new_pool(config, records[0], placement)
    stack.callback(pool.close)
    if cluster.colocate:  # an engine measures the free memory when it starts, and leaves before the learner comes
        pool.start()
        pool.sleep()
        learner.start()
        return pool, learner
    starting: list[Future[Any]] = [threads.submit(pool.start), threads.submit(learner.start)]
    for future in as_completed(starting):
        future.result()
    return pool, learner


def new_pool(config: RunConfig, sample: Record, placement: Placement) -> RolloutPool:
    """The actors of a run, not started yet; `sample` warms them up."""
    settings = ActorSettings.from_config(config)
    rollout = config.rollout
    remote = ray.remote(concurrency_groups=THREADS)(RolloutActor)

    def spawn(name: str) -> Any:
        slot = int(name.split("-")[1])  # actor-SLOT, and actor-SLOT-RESTART in the same place
        return remote.options(
            **placement.options("actor", slot),
            max_restarts=0,
            runtime_env={"env_vars": engine_environment(settings.engine)},
        ).remote(settings)

    limits = PoolSettings(
        num_actors=rollout.num_actors,
        max_in_flight_per_actor=rollout.max_in_flight_per_actor,
        startup_timeout_s=rollout.startup_timeout_s,
        stall_timeout_s=rollout.request_timeout_s,
        sync_timeout_s=config.sync.timeout_s,
        max_restarts=rollout.max_restarts,
        max_retries=rollout.max_retries,
        min_healthy=rollout.min_healthy,
        in_flight=config.sync.in_flight,
        heartbeat_s=rollout.heartbeat_s,
    )
    warmup = RolloutRequest(key=RequestKey(sample.index, EVALUATION_EPOCH), record=sample, seed=0)
    return RolloutPool(limits, spawn, warmup)
