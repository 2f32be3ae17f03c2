"""`rollmatch evaluate`: a checkpoint's score on the validation records, and its answers to look at. No learner.

With an output folder every answer is kept as it arrives, in the form of a run's folder, so that the commands that look
at runs look at it too:

    out/config.yaml, environment.json   what was asked of what
    out/evaluations.jsonl               every answer, as read and matched
    out/metrics.jsonl, summary.json     the scores, at the end
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from actors.evaluator import evaluate
from actors.outcome import Outcome
from actors.pool import RolloutPool
from deploy.check import require_clean
from deploy.cluster import EVALUATION_LOGS, ray_session
from deploy.environment import write_environment
from deploy.inputs import validation_records
from deploy.placement import reserve
from deploy.progress import TrainProgress
from deploy.recorder import RecordedRollout, append_evaluated
from deploy.signals import StopSignals
from deploy.starting import new_pool
from deploy.tracking import RunTracker
from protocol.config import RunConfig
from protocol.errors import ConfigError
from protocol.unread import RecordLines


def evaluate_checkpoint(config: RunConfig, output: Path | None = None) -> dict[str, float]:
    """Evaluates `model.model` as it is on `custom.val_jsonl`; with `output`, keeps every answer there.

    ConfigError before anything is started, also for an `output` that holds something.
    """
    require_clean(config, learners=False)
    validation = validation_records(config)
    if not validation:
        raise ConfigError("custom.val_jsonl: is missing, and there is nothing to evaluate on; name a file of records")
    if config.matching.vllm.load_format == "dummy":
        message = "is dummy, and without a learner nobody publishes weights; remove the key to evaluate model.model"
        raise ConfigError(f"custom.extra.rollout_matching.vllm.load_format: {message}")
    kept = _Kept(config, output) if output is not None else None
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(TrainProgress(len(validation), unit="answer"))
        progress.phase("start", "Ray and engines")
        stack.enter_context(ray_session(config, (output or config.run_dir) / EVALUATION_LOGS))
        stack.enter_context(StopSignals())
        placement = stack.enter_context(reserve(config, learners=False))
        pool = new_pool(config, next(iter(validation)).parse(), placement)
        stack.callback(pool.close)
        pool.start()
        pool.serve_start_checkpoint()
        metrics = _evaluated(pool, validation, progress, kept)
        if kept is not None:
            kept.finish(metrics, time.monotonic() - started, pool.num_restarts)
    return metrics


def _evaluated(
    pool: RolloutPool, validation: RecordLines, progress: TrainProgress, kept: _Kept | None
) -> dict[str, float]:
    def answered(count: int) -> None:
        progress.step({"step": count})
        progress.phase("evaluate", f"{len(validation) - count} of {len(validation)} validation rollouts")

    if kept is None:
        return evaluate(pool, validation, 0, _no_training_outcome, answered)
    return evaluate(pool, validation, 0, _no_training_outcome, answered, kept.answer, len(validation))


class _Kept:
    """The output folder."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        if config.rollout.record_bytes == 0:
            raise ConfigError("rollout.record_bytes: is 0, and --output is to keep the answers; remove the key")
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"--output: {folder} exists and is no empty folder; name another, or remove it")
        config.dump(folder / "config.yaml")
        write_environment(folder)
        self._folder = folder

    def answer(self, outcome: Outcome) -> None:
        append_evaluated(self._folder, [RecordedRollout.of(outcome, 0)])

    def finish(self, metrics: dict[str, float], wall_s: float, restarts: int) -> None:
        with RunTracker(self._folder, report_to=()) as tracker:
            tracker.log(0, metrics)
            f1 = metrics["eval_rollout_f1"]
            tracker.write_summary(
                {"f1_before": f1, "f1_after": f1, "restarts": restarts, "learner_restarts": 0, "wall_s": wall_s}
            )


def _no_training_outcome(outcome: Outcome, segment: object) -> None:
    raise AssertionError(f"{outcome.key}: only evaluation was asked for")
