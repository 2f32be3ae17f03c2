"""What the loop is given: the records of a run, its share of the configuration, and who plans its packs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from actors.loop import LoopSettings
from deploy.check_data import MAX_LINES
from protocol.carry import plan_carry
from protocol.config import RunConfig
from protocol.errors import RecordError
from protocol.packing import padded_plan, plan_packs
from protocol.records import RecordFile, RecordRows, sample_with_replacement
from protocol.segments import PackPlan
from protocol.unread import RecordLines

EVALUATED_KEPT = 12
"""Validation records whose answers are kept at each evaluation of a run: the same ones, to be compared by eye."""


class Data(NamedTuple):
    """The records of a run."""

    training: RecordFile
    validation: RecordLines


def validation_records(config: RunConfig) -> RecordLines:
    """The validation set, in file order or drawn with replacement; empty without `custom.val_jsonl`.

    Raises RecordError for a line that is no record, where `check_data` has not read so far: an evaluation that such a
    line fails is known to fail before anything is started.
    """
    custom = config.custom
    if custom.val_jsonl is None:
        return ()
    if custom.val_sample_with_replacement:
        assert custom.val_sample_limit is not None, "the configuration has asked for it"
        records = RecordFile(custom.val_jsonl)
        rows = sample_with_replacement(len(records), custom.val_sample_limit).tolist()
    else:
        records = RecordFile(custom.val_jsonl, limit=custom.val_sample_limit)
        rows = range(len(records))
    for line in records.read((row, 0) for row in sorted(set(rows)) if row >= MAX_LINES):
        line.parse()
    return RecordRows(records, rows)


def record_files(config: RunConfig) -> list[RecordFile]:
    """Both files of a run, whole, as far as it names them and they can be read; `check_data` names the others."""
    files = []
    for path in (config.custom.train_jsonl, config.custom.val_jsonl):
        if path is not None:
            with contextlib.suppress(RecordError):
                files.append(RecordFile(path))
    return files


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
        capacity=config.global_max_length if training.packing else None,
        min_fill=training.packing_min_fill_ratio,
        desc_enabled=config.matching.desc_monitor.enabled,
        desc_every=config.matching.desc_monitor.every(training.logging_steps),
        num_eval_traced=EVALUATED_KEPT if config.rollout.record_bytes else 0,
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
