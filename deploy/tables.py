"""The tables that a command ends with, on stdout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.health_numbers import LEVEL_WORDS, Level, without_empty_shares
from deploy.health_rules import findings
from deploy.run_files import read_numbers

BEFORE_AFTER = (
    "eval_rollout_f1",
    "eval_rollout_precision",
    "eval_rollout_recall",
    "eval_rollout_matched_maskiou_mean",
    "eval_rollout_desc_exact_acc_on_matched",
    "eval_rollout_desc_sem_acc_on_matched",
    "eval_rollout_pred_objects",
    "eval_rollout_gt_objects",
    "eval_rollout_parse_truncated_rate",
    "eval_rollout_duplicate_rate",
    "eval_rollout_sample_valid_pred_rate",
    "eval_rollout_samples",
)
"""Rows of the before/after table; one that was not measured is left out."""


def print_before_after(
    before: Mapping[str, float], after: Mapping[str, float], *, console: Console | None = None
) -> None:
    """What training changed: evaluation metrics of the start checkpoint and of the last version."""
    before, after = without_empty_shares(before), without_empty_shares(after)
    table = Table(title="Before and after training; F1 is by shape alone")
    table.add_column("metric")
    for column in ("before", "after", "change"):
        table.add_column(column, justify="right")
    for name in BEFORE_AFTER:
        if name in before and name in after:
            change = after[name] - before[name]
            table.add_row(
                _short(name), _number(before[name]), _number(after[name]), f"{change:+.4g}" if change else "0"
            )
    (console or Console()).print(table)


def print_health(run_dir: Path, *, console: Console | None = None) -> None:
    """What stands out in a run's numbers, as the report has it; nothing where all is well."""
    data = read_numbers(run_dir)
    console = console or Console()
    for finding in findings(data.steps, data.evaluations, data.setting, data.events, finished=data.summary is not None):
        if finding.level is not Level.GOOD:
            title = Text(f"{LEVEL_WORDS[finding.level]}: {finding.title}. ", "bold")
            console.print(title + Text(finding.text[:1].upper() + finding.text[1:]))


def print_metrics(metrics: Mapping[str, float], *, console: Console | None = None) -> None:
    """All metrics of one evaluation, in their own order."""
    table = Table(title="Evaluation")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in without_empty_shares(metrics).items():
        table.add_row(_short(name), _number(value))
    (console or Console()).print(table)


def _short(name: str) -> str:
    return name.removeprefix("eval_rollout_").removeprefix("eval_")


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) >= 2 else f"{value:.4f}"
