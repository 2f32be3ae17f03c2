"""What a run's numbers say, in words: thresholds on series, and what to change. Pure; report and live view share it.

A rule compares the end of a run (its last fifth) with its start or with a bound. It speaks of shares in per cent and
names the step from which on it holds, so that a person can look there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Any, NamedTuple

Rows = Sequence[Mapping[str, float]]

USABLE = 0.9
TRUNCATED = 0.05
REJECTED = 0.10
DUPLICATES = 0.10
PREDICTIONS_PER_TRUTH = 2.0
COLLAPSE = 0.5
WAITING = 0.6
AT_BOUND = 0.8


class Level(StrEnum):
    """How loud a finding is."""

    BAD = "bad"
    WATCH = "watch"
    GOOD = "good"


class HealthFinding(NamedTuple):
    """One sentence about the run, and what to do."""

    level: Level
    title: str
    text: str


Rule = Callable[["Numbers"], Iterator[HealthFinding]]


class Numbers:
    """A run's rows with the few statistics that rules need. Rows without a metric are left out of it."""

    def __init__(self, steps: Rows, evaluations: Rows, setting: Callable[[str, Any], Any]) -> None:
        self.steps, self.evaluations, self.setting = steps, evaluations, setting

    def series(self, name: str) -> list[tuple[float, float]]:
        rows = self.evaluations if name.startswith("eval_") else self.steps
        return [(row["step"], row[name]) for row in rows if name in row and not math.isnan(row[name])]

    def start(self, name: str) -> float | None:
        """Mean of the first fifth."""
        values = [value for _, value in self.series(name)]
        return _mean(values[: _fifth(values)])

    def end(self, name: str) -> float | None:
        """Mean of the last fifth."""
        values = [value for _, value in self.series(name)]
        return _mean(values[-_fifth(values) :])

    def total(self, name: str) -> float:
        return sum(value for _, value in self.series(name))

    def last(self, name: str) -> float | None:
        found = self.series(name)
        return found[-1][1] if found else None

    def since(self, name: str, bound: float) -> float | None:
        """The last step before the value went above the bound to stay; None: it was there from the start, or is not."""
        found = self.series(name)
        for at in range(1, len(found)):
            rest = [value for _, value in found[at:]]
            if rest[0] > bound and sum(value > bound for value in rest) >= 0.7 * len(rest):
                return found[at - 1][0]
        return None


def findings(steps: Rows, evaluations: Rows, setting: Callable[[str, Any], Any]) -> list[HealthFinding]:
    """Everything there is to say, the worst first. `setting(path, default)` reads the run's configuration."""
    numbers = Numbers(steps, evaluations, setting)
    if not steps:
        return [HealthFinding(Level.WATCH, "No optimizer step yet", "The run has not trained a window so far.")]
    found = [finding for rule in RULES for finding in rule(numbers)]
    if not any(finding.level is not Level.GOOD for finding in found):
        found.append(HealthFinding(Level.GOOD, "Nothing stands out", "All health counters are within their bounds."))
    return sorted(found, key=lambda finding: list(Level).index(finding.level))


def _quality(n: Numbers) -> Iterator[HealthFinding]:
    name = "eval_rollout_f1" if len(n.series("eval_rollout_f1")) > 1 else "rollout/f1"
    values = [value for _, value in n.series(name)]
    if len(values) < 2:
        return
    best, end, start = max(values), n.end(name) or 0.0, n.start(name) or 0.0
    what = "F1 of the evaluation" if name.startswith("eval") else "F1 of the rollouts"
    if end < COLLAPSE * best:
        yield HealthFinding(
            Level.BAD,
            "F1 has collapsed",
            f"{what} is {end:.3f} after a best of {best:.3f}: stop, go back to the best checkpoint, "
            "look at the worst samples, lower training.learning_rate.",
        )
    elif end > start:
        yield HealthFinding(Level.GOOD, "F1 rises", f"{what} rose from {start:.3f} to {end:.3f}.")
    evaluated = [value for _, value in n.series("eval_rollout_f1")]
    if len(evaluated) >= 4 and evaluated[-1] < evaluated[-2] < evaluated[-3] < evaluated[-4]:
        yield HealthFinding(
            Level.BAD, "F1 falls", f"F1 of the evaluation fell three times in a row, to {evaluated[-1]:.3f}: stop here."
        )


def _precision(n: Numbers) -> Iterator[HealthFinding]:
    truths, predicted = n.end("rollout/gt_per_sample"), n.end("rollout/pred_per_sample")
    if truths and predicted and predicted >= PREDICTIONS_PER_TRUTH * truths:
        at_start = (n.start("rollout/pred_per_sample") or 0.0) / truths
        yield HealthFinding(
            Level.BAD,
            "Too many predictions",
            f"{predicted / truths:.1f} predictions per ground-truth object, {at_start:.1f} at the start: nothing "
            "teaches the model to stop; use prefix_policy: matched, keep supervise_eos on.",
        )
    before, after = n.start("rollout/precision"), n.end("rollout/precision")
    gained = (n.end("rollout/recall") or 0.0) - (n.start("rollout/recall") or 0.0)
    if before is not None and after is not None and before - after >= 0.1 and gained > 0:
        yield HealthFinding(
            Level.WATCH,
            "Recall without precision",
            f"Recall rose by {gained:.2f} while precision fell from {before:.2f} to {after:.2f}: "
            "look for duplicates and invented objects; prefix_policy: matched keeps them out of the targets.",
        )


def _format(n: Numbers) -> Iterator[HealthFinding]:
    usable = n.end("rollout/sample_valid_pred_rate")
    if usable is None or usable >= USABLE:
        return
    before = n.start("rollout/sample_valid_pred_rate") or 0.0
    lost = before >= USABLE
    remedy = "lower training.learning_rate" if lost else "use a checkpoint that was trained with these prompts"
    yield HealthFinding(
        Level.BAD,
        "The format is lost" if lost else "The model does not speak the format",
        f"{_percent(usable)} of the rollouts hold a valid object, {_percent(before)} at the start: look at the worst "
        f"samples; {remedy}.",
    )


def _rate(
    metric: str, bound: float, level: Level, title: str, what: str, change: str | Callable[[Numbers], str]
) -> Rule:
    """A share that must stay below a bound."""

    def rule(n: Numbers) -> Iterator[HealthFinding]:
        end, start = n.end(metric), n.start(metric)
        if end is None or start is None or end <= bound:
            return
        since = n.since(metric, bound)
        after = f" after step {since:.0f}" if since is not None and end > start else ""
        moved = f"rose from {_percent(start)} to {_percent(end)}{after}" if end > start else f"is {_percent(end)}"
        advice = change if isinstance(change, str) else change(n)
        yield HealthFinding(level, title, f"{what} {moved}: {advice}.")

    return rule


def _against_truncation(n: Numbers) -> str:
    """Rollouts are cut off, or they end by themselves with their JSON open."""
    most = n.setting("custom.extra.rollout_matching.max_new_tokens", 0)
    longest = n.end("rollout/gen_new_tokens_p99")
    if most and longest is not None and longest < 0.95 * most:
        return (
            f"nearly all end by themselves, with {longest:.0f} of {most} new tokens and their JSON open: "
            "the format is being lost, look at the worst samples"
        )
    return "raise max_new_tokens or the guard (repeat_terminate)"


def _lengths(n: Numbers) -> Iterator[HealthFinding]:
    most = n.setting("custom.extra.rollout_matching.max_new_tokens", 0)
    longest = n.end("rollout/gen_new_tokens_p90")
    if most and longest is not None and longest >= most:
        yield HealthFinding(
            Level.WATCH,
            "Rollouts reach their limit",
            f"A tenth of the rollouts uses all {most} new tokens: raise max_new_tokens, or enable repeat_terminate.",
        )


def _waiting(n: Numbers) -> Iterator[HealthFinding]:
    waited, total = n.total("time/wait_rollouts_s"), n.total("time/step_s")
    share = waited / total if total > 0 else 0.0
    if share <= WAITING:
        return
    if not n.setting("rollout.max_staleness", 0):
        change = "with max_staleness 0 engines and learner take turns; rollout.max_staleness: 1 lets them overlap"
    else:
        change = "add actors (rollout.num_actors), or raise rollout.max_staleness"
    yield HealthFinding(
        Level.WATCH, "The learner waits", f"The learner waited for rollouts {_percent(share)} of the time: {change}."
    )


def _staleness(n: Numbers) -> Iterator[HealthFinding]:
    bound = n.setting("rollout.max_staleness", 0)
    values = [value for _, value in n.series("policy/staleness_max")]
    if bound and values and sum(value >= bound for value in values) > AT_BOUND * len(values):
        yield HealthFinding(
            Level.WATCH,
            "Staleness at its bound",
            f"Nearly every window was rolled out {bound} versions ago (rollout.max_staleness is {bound}): "
            "the actors are behind, add some, or accept it.",
        )


def _fill(n: Numbers) -> Iterator[HealthFinding]:
    fill, wanted = n.end("packing/post_rollout_fill"), n.setting("training.packing_min_fill_ratio", 0.65)
    if n.setting("training.packing", True) and fill is not None and fill < wanted:
        yield HealthFinding(
            Level.WATCH,
            "Packs are half empty",
            f"Packs are filled to {_percent(fill)}, training.packing_min_fill_ratio is {_percent(wanted)}: "
            "larger windows, fewer ranks, or a smaller global_max_length.",
        )


def _counted(metric: str, level: Level, title: str, change: str) -> Rule:
    """Something that should not happen at all; a counter adds up over events."""

    def rule(n: Numbers) -> Iterator[HealthFinding]:
        count = n.total(metric)
        if count > 0:
            first = next(step for step, value in n.series(metric) if value > 0)
            yield HealthFinding(level, title, f"{count:.0f} so far, the first at step {first:.0f}: {change}.")

    return rule


def _quarantine(n: Numbers) -> Iterator[HealthFinding]:
    count = n.last("rollout/quarantined")
    if count:
        yield HealthFinding(
            Level.WATCH, "Records in quarantine", f"{count:.0f} records were set aside: read quarantine.jsonl."
        )


RULES: tuple[Rule, ...] = (
    _quality,
    _precision,
    _format,
    _rate(
        "rollout/parse_truncated_rate",
        TRUNCATED,
        Level.BAD,
        "Truncated rollouts",
        "truncation",
        _against_truncation,
    ),
    _rate(
        "rollout/parse_obj_drop_frac",
        REJECTED,
        Level.BAD,
        "Invalid objects",
        "the share of rejected objects",
        "look at the reject reasons below; the format is being lost",
    ),
    _rate(
        "rollout/duplicate_rate",
        DUPLICATES,
        Level.BAD,
        "Duplicates",
        "the share of repeated predictions",
        "check supervise_eos, try prefix_policy: matched",
    ),
    _lengths,
    _waiting,
    _staleness,
    _fill,
    _counted("train/skipped_steps", Level.BAD, "Skipped optimizer steps", "lower training.learning_rate"),
    _counted("rollout/actor_restarts", Level.WATCH, "Actors were restarted", "read events.jsonl and the actor's log"),
    _counted("rollout/oversize_dropped", Level.WATCH, "Targets too long", "raise global_max_length"),
    _counted("dump/failed", Level.WATCH, "Dumps could not be written", "read the driver's log"),
    _counted("dump/dropped", Level.WATCH, "Dumps were dropped", "write fewer, or to a faster disk"),
    _quarantine,
)


def _fifth(values: Sequence[float]) -> int:
    return max(1, len(values) // 5)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
