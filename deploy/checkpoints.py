"""When a run saves, what it keeps, and where it resumes.

    runs/NAME/checkpoint-40/    trainer.json, deepspeed/, ranks/, adapter/ and merged/ (see learner.checkpoint)
    runs/NAME/best.json         which checkpoint is best by training.metric_for_best_model

A checkpoint is taken between two windows only: then nothing is half trained, and the position of the oldest request
that was not trained is all that must be remembered of the data.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any, Protocol

from actors.loop import LoopState
from protocol.config import RunConfig
from protocol.errors import ConfigError

COMPLETE = "trainer.json"

log = logging.getLogger("rollmatch")


class SavingLearner(Protocol):
    """What is needed of the learner group."""

    def save_checkpoint(self, path: Path, extra: dict[str, Any]) -> None: ...

    def export_merged(self, path: Path) -> None: ...


class CheckpointKeeper:
    """Saves when due, keeps `save_total_limit` checkpoints: the newest and the best always stay."""

    def __init__(self, config: RunConfig, learner: SavingLearner, num_records: int) -> None:
        steps_per_epoch = config.m_steps * num_records / config.training.effective_batch_size
        self._training = config.training
        self._run_dir = config.run_dir
        self._learner = learner
        self._every = {
            "no": None,
            "steps": config.training.save_steps,
            "epoch": max(1, round(steps_per_epoch)),
        }[config.training.save_strategy]
        self._delay = max(config.training.save_delay_steps, config.training.save_delay_epochs * steps_per_epoch)
        self._last = 0

    def due(self, step: int) -> bool:
        """Whether a multiple of the saving interval was crossed since the last save, after the delay."""
        if self._every is None or step < self._delay:
            return False
        return step // self._every > self._last // self._every

    def save(self, state: LoopState, position: int) -> Path:
        """Writes `checkpoint-STEP`, updates `best.json`, removes what is beyond the limit."""
        path = self._run_dir / f"checkpoint-{state.step}"
        self._learner.save_checkpoint(path, state.as_mapping() | {"position": position})
        self._learner.export_merged(path / "merged")
        self._last = state.step
        self._note_best(state, path)
        self._prune(newest=path)
        return path

    def _note_best(self, state: LoopState, path: Path) -> None:
        name = self._training.metric_for_best_model
        scores = [metrics[name] for step, metrics in state.evaluations if step == state.step and name in metrics]
        if not scores:
            return  # not evaluated at this step: it cannot compete
        best = self._best()
        sign = 1 if self._training.greater_is_better else -1
        if best is None or sign * scores[-1] > sign * best["value"]:
            entry = {"checkpoint": path.name, "metric": name, "value": scores[-1]}
            (self._run_dir / "best.json").write_text(json.dumps(entry) + "\n")

    def _best(self) -> dict[str, Any] | None:
        file = self._run_dir / "best.json"
        return json.loads(file.read_text()) if file.exists() else None

    def _prune(self, newest: Path) -> None:
        limit = self._training.save_total_limit
        if limit is None:
            return
        best = self._best()
        kept = {newest.name, best["checkpoint"] if best else newest.name}
        others = [path for path in complete_checkpoints(self._run_dir) if path.name not in kept]
        for path in others[: max(0, len(others) + len(kept) - limit)]:
            shutil.rmtree(path)


def complete_checkpoints(run_dir: Path) -> list[Path]:
    """Whole checkpoints of a run, oldest first."""
    found = [
        (int(match[1]), path)
        for path in run_dir.glob("checkpoint-*")
        if (match := re.fullmatch(r"checkpoint-(\d+)", path.name)) and (path / COMPLETE).exists()
    ]
    return [path for _, path in sorted(found)]


def resume_path(config: RunConfig) -> Path | None:
    """The checkpoint that `training.resume` names; None to start anew. ConfigError for a folder that is none."""
    resume = config.training.resume
    existing = complete_checkpoints(config.run_dir)
    if resume == "auto":
        return existing[-1] if existing else None
    if resume != "never":
        if not (Path(resume) / COMPLETE).exists():
            raise ConfigError(f"training.resume: {resume} holds no {COMPLETE}; name a checkpoint-STEP folder, or auto")
        return Path(resume)
    return None


def prepare_run_folder(run_dir: Path, *, fresh: bool) -> None:
    """Makes the run's folder. A fresh start moves an earlier run of that name aside, to `NAME.1`, `NAME.2`, ..."""
    if fresh and run_dir.exists():
        aside = next(p for n in itertools.count(1) if not (p := run_dir.with_name(f"{run_dir.name}.{n}")).exists())
        run_dir.rename(aside)
        log.info("an earlier run of this name is now %s", aside)
    run_dir.mkdir(parents=True, exist_ok=True)
