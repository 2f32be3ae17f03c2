"""From a configuration to a running service and back to nothing: the only file that joins actors and learner.

Order of life: check → run directory → Ray → engines and learner at once → loop → checkpoint → everything closed, in
reverse order, whatever happened. When the learner fails, engines and learner are closed and the run goes on from its
last checkpoint: the part from "engines and learner" on is repeated, by the very path that a resume takes.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from functools import partial
from typing import Any, NamedTuple

import ray

from actors.buffer import SegmentBuffer
from actors.controller import Controller
from actors.evaluator import evaluate
from actors.loop import LoopSettings, LoopState
from actors.pool import CONTROL_THREADS, MAX_CALLS, RolloutPool
from actors.requests import RequestStream
from actors.rollout_actor import Outcome, RolloutActor
from actors.settings import ActorSettings
from actors.supervision import PoolSettings
from actors.vllm_engine import engine_environment
from deploy.check import require_clean
from deploy.checkpoints import CheckpointKeeper, ResumePoint, begin_run, newest_checkpoint, rewind
from deploy.cluster import ray_session
from deploy.environment import write_environment
from deploy.observer import RunObserver
from deploy.placement import Placement, reserve
from deploy.signals import StopSignals
from deploy.sync_backends import publishing_learner
from learner.group import LearnerGroup
from learner.settings import LearnerSettings
from protocol.carry import plan_carry
from protocol.config import RunConfig
from protocol.contracts import EVALUATION_EPOCH, PackPlan, Record, RequestKey, RolloutRequest, segment_bytes
from protocol.errors import ConfigError, LearnerError
from protocol.packing import padded_plan, plan_packs
from protocol.records import RecordFile, read_records, sample_with_replacement


def train(config: RunConfig) -> dict[str, Any]:
    """Runs the whole service to `max_steps`; returns the summary that `summary.json` holds.

    Interrupted after SIGINT or SIGTERM, when the checkpoint is written; ConfigError before anything was started.
    """
    require_clean(config)
    started = time.monotonic()
    data = Data(training_records(config), validation_records(config))
    point = begin_run(config)
    config.dump(config.run_dir / "config.yaml")
    write_environment(config.run_dir)
    with contextlib.ExitStack() as stack:
        observer = stack.enter_context(RunObserver(config, config.num_optimizer_steps(len(data.training))))
        if point is not None:
            observer.resumed(point)
        stack.enter_context(ray_session(config))
        signals = stack.enter_context(StopSignals())
        result = _run(config, data, point, observer, signals)
        summary = summarise(config, result, time.monotonic() - started)
        observer.finish(summary)
    return summary


class Data(NamedTuple):
    """The records of a run."""

    training: RecordFile
    validation: list[Record]


class RunResult(NamedTuple):
    """How a run ended."""

    state: LoopState
    actor_restarts: int
    """Of the last attempt."""
    learner_restarts: int


def _run(
    config: RunConfig, data: Data, point: ResumePoint | None, observer: RunObserver, signals: StopSignals
) -> RunResult:
    """Runs to the end; when the learner fails, again from the last checkpoint, as a resume in a new process would.

    Only a learner that was running is restarted: one that cannot start will not start the next time either.

    Raises LearnerError, with its cause, after `cluster.max_learner_restarts` of them.
    """
    limit = config.cluster.max_learner_restarts
    for failures in itertools.count():
        with _service(config, data, point, observer) as (controller, pool):
            try:
                with signals.stop(controller):
                    return RunResult(controller.run(), pool.num_restarts, failures)
            except LearnerError as error:
                if controller.stop:
                    raise
                cause = error
        if failures == limit:
            raise LearnerError(
                f"the learner failed {failures + 1} times (cluster.max_learner_restarts is {limit}), last at step "
                f"{controller.state.step}: {cause}"
            ) from cause
        last = newest_checkpoint(config.run_dir) or (point and point.path)
        point = ResumePoint.read(last) if last else None
        rewind(config.run_dir, point)
        observer.restarted(point, cause)
    raise AssertionError("the loop above does not end")


@contextlib.contextmanager
def _service(
    config: RunConfig, data: Data, point: ResumePoint | None, observer: RunObserver
) -> Iterator[tuple[Controller, RolloutPool]]:
    """Engines and learner, started or resumed at `point`; both are closed with the context."""
    num_records = len(data.training)
    observer.phase("start", "room on the cluster, then engines and learner ranks")
    with contextlib.ExitStack() as stack:
        placement = stack.enter_context(reserve(config))
        pool, learner = _start(config, data.training, placement, stack)
        if point is not None:
            learner.load_checkpoint(point.path)
        buffer = SegmentBuffer(
            config.buffer.max_bytes, config.buffer.max_segments, segment_bytes(config.global_max_length)
        )
        observer.watch(pool, buffer, ray.nodes() if config.metrics.vllm else ())
        controller = Controller(
            loop_settings(config, num_records),
            pool=pool,
            learner=publishing_learner(config, learner, pool),
            buffer=buffer,
            requests=RequestStream(
                data.training,
                config.training.seed,
                position=point.position if point else 0,
                shuffle=config.data.dataset_shuffle,
            ),
            validation=data.validation,
            plan=planner(config),
            observer=observer,
            keeper=CheckpointKeeper(config, learner, num_records, last_step=point.state.step if point else 0),
            state=point.state if point else None,
        )
        yield controller, pool


def evaluate_only(config: RunConfig) -> dict[str, float]:
    """Evaluates `model.model` as it is on `custom.val_jsonl`: engines, no learner."""
    require_clean(config)
    validation = validation_records(config)
    if not validation:
        raise ConfigError("custom.val_jsonl: is missing, and there is nothing to evaluate on; name a file of records")
    if config.matching.vllm.load_format == "dummy":
        message = "is dummy, and without a learner nobody publishes weights; remove the key to evaluate model.model"
        raise ConfigError(f"custom.extra.rollout_matching.vllm.load_format: {message}")
    with ray_session(config), reserve(config, learners=False) as placement, contextlib.ExitStack() as stack:
        pool = _pool(config, validation[0], placement)
        stack.callback(pool.close)
        pool.start()
        pool.serve_start_checkpoint()
        return evaluate(pool, validation, 0, _no_training_outcome)


def _no_training_outcome(outcome: Outcome, segment: Any) -> None:
    raise AssertionError(f"{outcome.key}: only evaluation was asked for")


def validation_records(config: RunConfig) -> list[Record]:
    """The validation set, in file order or drawn with replacement; empty without `custom.val_jsonl`."""
    custom = config.custom
    if custom.val_jsonl is None:
        return []
    if not custom.val_sample_with_replacement:
        return list(read_records(custom.val_jsonl, limit=custom.val_sample_limit))
    assert custom.val_sample_limit is not None, "the configuration has asked for it"
    records = RecordFile(custom.val_jsonl)
    return [records[int(row)] for row in sample_with_replacement(len(records), custom.val_sample_limit)]


def training_records(config: RunConfig) -> RecordFile:
    """The training set by position; no record is read yet."""
    custom = config.custom
    assert custom.train_jsonl is not None, "the check has asked for it"
    return RecordFile(
        custom.train_jsonl,
        limit=custom.train_sample_limit,
        ordering=custom.object_ordering,
        seed=config.training.seed,
    )


def loop_settings(config: RunConfig, num_records: int) -> LoopSettings:
    """The loop's share of the configuration."""
    training = config.training
    return LoopSettings(
        batch_size=training.effective_batch_size,
        m_steps=config.m_steps,
        max_steps=config.num_optimizer_steps(num_records),
        max_staleness=config.rollout.max_staleness,
        packing_carry=training.packing_carry,
        packing_drop_last=training.packing_drop_last,
        eval_steps=config.interval(training.eval_strategy, training.eval_steps, num_records),
        save_last=training.save_last_epoch,
        top_k=config.matching.candidate_top_k,
        capacity=config.global_max_length,
        desc_enabled=config.matching.desc_monitor.enabled,
        desc_every=config.matching.desc_monitor.every(training.logging_steps),
        learning=training.learning_rate > 0,
        skip_publish=config.sync.debug_skip_publish,
        takes_turns=config.cluster.colocate,
    )


def planner(config: RunConfig) -> Callable[..., PackPlan]:
    """Packs up to `global_max_length`, or padded rows of `per_device_train_batch_size`."""
    ranks = config.cluster.num_learners
    if config.training.packing_carry:
        fill = config.training.packing_min_fill_ratio
        return partial(plan_carry, capacity=config.global_max_length, num_ranks=ranks, min_fill=fill)
    if config.training.packing:
        return partial(plan_packs, capacity=config.global_max_length, num_ranks=ranks)
    return partial(padded_plan, per_device_batch_size=config.training.per_device_train_batch_size, num_ranks=ranks)


def summarise(config: RunConfig, result: RunResult, wall_s: float) -> dict[str, Any]:
    """What a person wants to know at the end."""
    state = result.state
    before, after = (state.evaluations[0][1], state.evaluations[-1][1]) if state.evaluations else ({}, {})
    return {
        "f1_before": before.get("eval_rollout_f1"),
        "f1_after": after.get("eval_rollout_f1"),
        "steps": state.step,
        "rollouts": state.accepted,
        "policy_versions": state.version,
        "versions_used": sorted(state.versions_used),
        "quarantined": state.quarantined,
        "restarts": result.actor_restarts,
        "learner_restarts": result.learner_restarts,
        "wall_s": round(wall_s, 1),
        "seed": config.training.seed,
        "prefix_policy": config.matching.prefix_policy,
        "run": str(config.run_dir),
        "before": before,
        "after": after,
    }


def _start(
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
        step_timeout_s=cluster.step_timeout_s,
    )
    stack.callback(learner.close)
    pool = _pool(config, records[0], placement)
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


def _pool(config: RunConfig, sample: Record, placement: Placement) -> RolloutPool:
    settings = ActorSettings.from_config(config)
    rollout = config.rollout
    remote = ray.remote(concurrency_groups=CONTROL_THREADS, max_concurrency=MAX_CALLS)(RolloutActor)

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
