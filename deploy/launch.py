"""From a configuration to a running service and back to nothing: the only file that joins actors and learner.

Order of life: check → the run's folder, for this process alone → Ray → engines and learner at once → loop → checkpoint
→ everything closed, in reverse order, whatever happened. When the learner fails, engines and learner are closed and the
run goes on from its last checkpoint: the part from "engines and learner" on is repeated, by the very path that a resume
takes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import ray

from actors.buffer import SegmentBuffer
from actors.controller import Controller
from actors.loop import LoopState
from actors.pool import RolloutPool
from actors.requests import RequestStream
from deploy.check import require_clean
from deploy.checkpoints import CheckpointKeeper, ResumePoint, begin_run, newest_checkpoint, resume_point, rewind
from deploy.cluster import ray_session
from deploy.environment import write_environment
from deploy.inputs import Data, loop_settings, planner, training_records, validation_records
from deploy.observer import RunObserver
from deploy.placement import reserve
from deploy.run_lock import alone
from deploy.signals import StopSignals
from deploy.starting import start_service
from deploy.sync_backends import publishing_learner
from deploy.tracking import SUMMARY
from protocol.config import RunConfig
from protocol.errors import LearnerError
from protocol.segments import segment_bytes

log = logging.getLogger("rollmatch")


def train(config: RunConfig) -> dict[str, Any]:
    """Runs the whole service to `max_steps`; returns the summary that `summary.json` holds.

    A resume of a run that has got there already starts nothing and returns that run's summary.

    Interrupted after SIGINT or SIGTERM, when the checkpoint is written. ConfigError, nearly always before anything was
    changed or started; later for what only this machine, the cluster or a learner rank can tell.
    """
    require_clean(config)
    started = time.monotonic()
    data = Data(training_records(config), validation_records(config))
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone(config.run_dir))
        if (finished := _finished(config, data)) is not None:
            return finished
        point = begin_run(config, len(data.training))
        config.dump(config.run_dir / "config.yaml")
        write_environment(config.run_dir)
        observer = stack.enter_context(RunObserver(config, config.num_optimizer_steps(len(data.training))))
        if point is not None:
            observer.resumed(point)
        stack.enter_context(ray_session(config))
        signals = stack.enter_context(StopSignals(observer.notice))
        result = _run(config, data, point, observer, signals)
        summary = summarise(config, result, time.monotonic() - started)
        observer.finish(summary)
    return summary


def _finished(config: RunConfig, data: Data) -> dict[str, Any] | None:
    """The summary of a run that ended, where its resume has no step to train and no evaluation to make up for."""
    path = config.run_dir / SUMMARY
    if config.training.resume == "never" or not path.exists():
        return None
    point = resume_point(config, len(data.training))
    if point is None or point.path.parent != config.run_dir.resolve():
        return None
    state, num_steps = point.state, config.num_optimizer_steps(len(data.training))
    evaluated = not data.validation or (state.evaluations and state.evaluations[-1][0] >= state.step)
    summary: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if state.step < num_steps or not evaluated or summary["steps"] != state.step:
        return None
    setting = "max_steps" if config.training.max_steps >= 0 else "num_train_epochs"
    text = "%s is at step %d of %d: nothing is left to train; raise training.%s to go on"
    log.info(text, config.run_dir, state.step, num_steps, setting)
    return summary | {"run": str(config.run_dir)}  # its folder may have moved


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

    Raises LearnerError, with its cause, after `cluster.max_learner_restarts` of them without a new checkpoint.
    """
    limit, failures, saved = config.cluster.max_learner_restarts, 0, 0
    for restarts in itertools.count():
        with _service(config, data, point, observer) as (controller, pool):
            try:
                with signals.stop(controller):
                    return RunResult(controller.run(), pool.num_restarts, restarts)
            except LearnerError as error:
                if controller.stop:
                    raise
                cause = error
        last = newest_checkpoint(config.run_dir) or (point and point.path)
        point = ResumePoint.read(last) if last else None
        before, saved = saved, point.state.step if point else 0
        failures = 1 if saved > before else failures + 1
        if failures > limit:
            raise LearnerError(
                f"the learner failed {failures} times since {'the checkpoint of ' if point else ''}step {saved} "
                f"(cluster.max_learner_restarts is {limit}), last at step {controller.state.step}: {cause}"
            ) from cause
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
        pool, learner = start_service(config, data.training, placement, stack)
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
