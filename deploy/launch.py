"""From a configuration to a running service and back to nothing: the only file that joins actors and learner.

Order of life: check → run directory → Ray → engines and learner at once → loop → checkpoint → everything closed, in
reverse order, whatever happened.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import ray

from actors.buffer import SegmentBuffer
from actors.controller import Controller
from actors.evaluator import evaluate
from actors.loop import LoopSettings, LoopState
from actors.pool import CONTROL_THREADS, MAX_CALLS, PoolSettings, RolloutPool
from actors.requests import RequestStream
from actors.rollout_actor import Outcome, RolloutActor
from actors.settings import ActorSettings
from actors.vllm_engine import engine_environment
from deploy.check import require_clean
from deploy.checkpoints import CheckpointKeeper, prepare_run_folder, resume_path
from deploy.cluster import ray_session
from deploy.environment import write_environment
from deploy.observer import RunObserver
from deploy.placement import Placement, reserve
from learner.group import LearnerGroup
from learner.settings import LearnerSettings
from protocol.config import RunConfig
from protocol.contracts import EVALUATION_EPOCH, PackPlan, Record, RequestKey, RolloutRequest, segment_bytes
from protocol.errors import ConfigError
from protocol.packing import padded_plan, plan_packs
from protocol.records import RecordFile, read_records


def train(config: RunConfig) -> dict[str, Any]:
    """Runs the whole service to `max_steps`; returns the summary that `summary.json` holds.

    Interrupted after SIGINT or SIGTERM, when the checkpoint is written; ConfigError before anything was started.
    """
    require_clean(config)
    started = time.monotonic()
    records = training_records(config)
    validation = validation_records(config)
    resumed = resume_path(config)
    prepare_run_folder(config.run_dir, fresh=resumed is None)
    config.dump(config.run_dir / "config.yaml")
    write_environment(config.run_dir)
    with contextlib.ExitStack() as stack:
        observer = stack.enter_context(RunObserver(config, config.num_optimizer_steps(len(records))))
        stack.enter_context(ray_session(config))
        observer.phase("start", "room on the cluster, then engines and learner ranks")
        placement = stack.enter_context(reserve(config))
        pool, learner = _start(config, records, placement, stack)
        extra = learner.load_checkpoint(resumed) if resumed else None
        buffer = SegmentBuffer(
            config.buffer.max_bytes, config.buffer.max_segments, segment_bytes(config.global_max_length)
        )
        observer.watch(pool, buffer, ray.nodes() if config.metrics.vllm else ())
        controller = Controller(
            loop_settings(config, len(records)),
            pool=pool,
            learner=learner,
            buffer=buffer,
            requests=RequestStream(records, config.training.seed, position=extra["position"] if extra else 0),
            validation=validation,
            plan=planner(config),
            observer=observer,
            keeper=CheckpointKeeper(config, learner, len(records)),
            state=LoopState.from_mapping(extra) if extra else None,
        )
        with _stops_between_windows(controller):
            state = controller.run()
        summary = summarise(config, state, pool.num_restarts, time.monotonic() - started)
        observer.finish(summary)
    return summary


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
    """The validation set, in file order; empty without `custom.val_jsonl`."""
    if config.custom.val_jsonl is None:
        return []
    return list(read_records(config.custom.val_jsonl, limit=config.custom.val_sample_limit))


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
        eval_steps=training.eval_steps or 0,
        save_last=training.save_last_epoch,
        top_k=config.matching.candidate_top_k,
        capacity=config.global_max_length,
        desc_enabled=config.matching.desc_monitor.enabled,
        desc_every=config.matching.desc_monitor.every(training.logging_steps),
        learning=training.learning_rate > 0,
        skip_publish=config.sync.debug_skip_publish,
        takes_turns=config.cluster.colocate,
    )


def planner(config: RunConfig) -> Callable[[Sequence[int]], PackPlan]:
    """Packs up to `global_max_length`, or padded rows of `per_device_train_batch_size`."""
    ranks = config.cluster.num_learners
    if config.training.packing:
        return partial(plan_packs, capacity=config.global_max_length, num_ranks=ranks)
    return partial(padded_plan, per_device_batch_size=config.training.per_device_train_batch_size, num_ranks=ranks)


def summarise(config: RunConfig, state: LoopState, num_restarts: int, wall_s: float) -> dict[str, Any]:
    """What a person wants to know at the end."""
    before, after = (state.evaluations[0][1], state.evaluations[-1][1]) if state.evaluations else ({}, {})
    return {
        "f1_before": before.get("eval_rollout_f1"),
        "f1_after": after.get("eval_rollout_f1"),
        "steps": state.step,
        "rollouts": state.accepted,
        "policy_versions": state.version,
        "versions_used": sorted(state.versions_used),
        "quarantined": state.quarantined,
        "restarts": num_restarts,
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
    with ThreadPoolExecutor(max_workers=2) as threads:
        starting: list[Future[Any]] = [threads.submit(pool.start), threads.submit(learner.start)]
        for future in starting:
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


@contextlib.contextmanager
def _stops_between_windows(controller: Controller) -> Iterator[None]:
    """First SIGINT or SIGTERM: finish the window, save, leave. A second one: leave now, without saving."""

    def ask(signum: int, _frame: object) -> None:
        if controller.stop:
            raise KeyboardInterrupt
        controller.stop = True

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
