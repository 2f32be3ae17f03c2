"""When a run saves, what it keeps, and where it resumes.

    runs/NAME/checkpoint-40/           trainer.json, deepspeed/, ranks/, adapter/ and merged/ (see learner.checkpoint)
    runs/NAME/checkpoint-50.abandoned/ lay after the step that a resume went back to
    runs/NAME/best.json                which checkpoint is best by training.metric_for_best_model

A checkpoint is taken between two windows only: then nothing is half trained, and the position of the oldest request
that was not trained is all that must be remembered of the data.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from actors.loop import LoopState
from deploy.health_numbers import without_empty_shares
from deploy.history import check_lengths, copy_history, cut_back, lengths
from deploy.ledger import NAME as LEDGER
from deploy.ledger import check_ledger, read_ledger
from deploy.resume_settings import check_settings, settings_of
from learner.checkpoint import META, Checkpoint, mend_folder, remember, remove_folder, replace_folder
from learner.settings import LearnerSettings
from protocol.config import RunConfig
from protocol.errors import ConfigError
from protocol.whole_file import write_whole

ORIGIN = "resumed_from"
"""File of a run that goes on from another run's checkpoint: where `auto` starts until there is one of its own."""

log = logging.getLogger("rollmatch")


class SavingLearner(Protocol):
    """What is needed of the learner group."""

    def save_checkpoint(self, path: Path, extra: dict[str, Any]) -> None: ...


class ResumePoint(NamedTuple):
    """Where a run goes on: a checkpoint, and what it remembers for the driver."""

    path: Path
    state: LoopState
    position: int
    """Position of the oldest request that was not trained."""
    lengths: dict[str, int]
    """Bytes of the run's files when it was taken; see `deploy.history`."""
    settings: dict[str, Any]
    """What must be as it was; see `deploy.resume_settings`."""

    @classmethod
    def read(cls, path: Path) -> ResumePoint:
        """ConfigError where the folder is no checkpoint of this version."""
        extra = Checkpoint.read(path).extra
        return cls(path, LoopState.from_mapping(extra), extra["position"], extra["history"], extra["settings"])


class CheckpointKeeper:
    """Saves when due, keeps `save_total_limit` checkpoints: the newest and the best always stay."""

    def __init__(self, config: RunConfig, learner: SavingLearner, num_records: int, last_step: int = 0) -> None:
        """`last_step`: of the checkpoint that the run continues from."""
        self._settings = settings_of(config, num_records)
        self._training = config.training
        self._run_dir = config.run_dir
        self._learner = learner
        self._every = config.interval(config.training.save_strategy, config.training.save_steps, num_records)
        self._delay = config.save_delay(num_records)
        self._last = last_step

    def due(self, step: int) -> bool:
        """Whether a multiple of the saving interval was crossed since the last save, after the delay."""
        if not self._every or step < self._delay:
            return False
        return step // self._every > self._last // self._every

    def snapshot(self, state: LoopState, position: int) -> Callable[[], Path]:
        """What writes `checkpoint-STEP`, or only what it remembers where it is there, updates `best.json` and removes
        what is beyond the limit.

        The checkpoint remembers the loop and the run's files as they are now: both may go on while it is written.
        """
        rest = {"position": position, "history": lengths(self._run_dir), "settings": self._settings}
        remembered = state.as_mapping() | rest
        return partial(self._write, remembered)

    def _write(self, remembered: dict[str, Any]) -> Path:
        step = remembered["step"]
        path = self._run_dir / f"checkpoint-{step}"
        if step == self._last and _is_complete(path):
            remember(path, remembered)  # it may have been written before the evaluation of its step
        else:
            self._learner.save_checkpoint(path, remembered)
        self._last = step
        self._prune({path.name, self._note_best(remembered["evaluations"]) or path.name})
        return path

    def _note_best(self, evaluations: Sequence[tuple[int, dict[str, float]]]) -> str | None:
        """From the evaluations of checkpoints that exist, so that a resumed run decides as one that was not stopped.

        An evaluation that matched nothing has no share of matched pairs: its 1 would make a dead model the best.
        """
        name, sign = self._training.metric_for_best_model, 1 if self._training.greater_is_better else -1
        scores = {
            f"checkpoint-{step}": metrics[name]
            for step, metrics in ((step, without_empty_shares(measured)) for step, measured in evaluations)
            if name in metrics and _is_complete(self._run_dir / f"checkpoint-{step}")
        }
        if not scores:
            return None  # no checkpoint has been evaluated
        best = max(scores, key=lambda checkpoint: sign * scores[checkpoint])
        entry = {"checkpoint": best, "metric": name, "value": scores[best]}
        write_whole(self._run_dir / "best.json", json.dumps(entry) + "\n")
        return best

    def _prune(self, kept: set[str]) -> None:
        limit = self._training.save_total_limit
        if limit is None:
            return
        others = [path for path in complete_checkpoints(self._run_dir) if path.name not in kept]
        for path in others[: max(0, len(others) + len(kept) - limit)]:
            remove_folder(path)


def _is_complete(path: Path) -> bool:
    return (path / META).exists()


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    found = [
        (int(match[1]), path)
        for path in run_dir.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and _is_complete(path)
    ]
    return [path for _, path in sorted(found)]


def resume_path(config: RunConfig) -> Path | None:
    """The checkpoint that `training.resume` names, absolute; None to start anew. ConfigError where it is none."""
    resume = config.training.resume
    if resume == "never":
        return None
    if resume == "auto":
        run_dir = config.run_dir.resolve()
        origin = run_dir / ORIGIN
        last = newest_checkpoint(run_dir) or (Path(origin.read_text().strip()) if origin.exists() else None)
        if last is not None and not _is_complete(last):
            raise ConfigError(
                f"training.resume: auto, and {last}, which this run went on from ({origin}), is gone; bring it back, "
                "or write never to start anew"
            )
        return last
    if not _is_complete(Path(resume)):
        raise ConfigError(f"training.resume: {resume} holds no {META}; name a checkpoint-STEP folder, or auto")
    return Path(resume).resolve()


def newest_checkpoint(run_dir: Path) -> Path | None:
    """The last whole checkpoint of a run, if it has one."""
    return next(reversed(complete_checkpoints(run_dir)), None)


def resume_point(config: RunConfig, num_records: int) -> ResumePoint | None:
    """Where `training.resume` goes on; None to start anew.

    Raises ConfigError where the run cannot go on from its checkpoint. Nothing was changed then.
    """
    mend_folder(config.run_dir)
    path = resume_path(config)
    if path is None:
        return None
    point = ResumePoint.read(path)
    check_settings(path, point.settings, settings_of(config, num_records))
    learner = LearnerSettings.from_config(config, config.num_optimizer_steps(num_records))
    Checkpoint.read(path).check_shape(path, config.cluster.num_learners, learner.zero_stage)
    _check_files(path.parent, point)
    return point


def begin_run(config: RunConfig, num_records: int) -> ResumePoint | None:
    """Finds where the run starts and makes its folder ready: whole checkpoints and no line beyond that point.

    A run that starts anew, or from a checkpoint of another run that is named, moves an earlier run of its name aside,
    to `NAME.1`, `NAME.2`, ... Where it came from is written first, and `auto` goes on in the folder as it is: a start
    that dies in between is taken up there.

    Raises ConfigError, before anything was changed, where the run cannot go on from its checkpoint.
    """
    run_dir = config.run_dir
    point = resume_point(config, num_records)
    if point is None and config.training.resume == "auto":
        log.info("no checkpoint in %s, starting from model.model %s", run_dir, config.model.model)
    from_another = point is not None and point.path.parent != run_dir.resolve()
    if point is None or (from_another and config.training.resume != "auto"):
        _move_aside(run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    if point is not None and from_another:
        write_whole(run_dir / ORIGIN, f"{point.path}\n")
        copy_history(point.path.parent, run_dir, point.state.step)
    rewind(run_dir, point)
    return point


def _check_files(run_dir: Path, point: ResumePoint) -> None:
    """That the files beside a checkpoint are those of the run that wrote it."""
    check_lengths(run_dir, point.lengths)
    windows = read_ledger(run_dir, point.lengths.get(LEDGER))
    check_ledger(windows, num_steps=point.state.step, num_trained=point.state.trained)


def rewind(run_dir: Path, point: ResumePoint | None) -> None:
    """Forgets what was written after `point`; None: everything. ConfigError where a file does not fit.

    Later checkpoints get another name first: the history that they count on is cut.
    """
    for path in complete_checkpoints(run_dir):
        if point is None or int(path.name.rpartition("-")[2]) > point.state.step:
            aside = _free_name(path.with_name(f"{path.name}.abandoned"))
            log.warning("%s lies after the step that the run goes back to: renamed to %s", path, aside.name)
            replace_folder(path, aside)
    cut_back(run_dir, point.lengths if point else {})
    if point is not None:
        check_ledger(read_ledger(run_dir), num_steps=point.state.step, num_trained=point.state.trained)


def _free_name(path: Path) -> Path:
    """`path`, or the first of `path.1`, `path.2`, ... that is not there."""
    numbered = (path.with_name(f"{path.name}.{number}") for number in itertools.count(1))
    return next(candidate for candidate in itertools.chain([path], numbered) if not candidate.exists())


def _move_aside(run_dir: Path) -> None:
    if run_dir.exists():
        aside = _free_name(run_dir)
        run_dir.rename(aside)
        log.info("an earlier run of this name is now %s", aside)
