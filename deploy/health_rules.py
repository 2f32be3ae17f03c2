"""What a run's numbers say, in words: thresholds on series, and what to change. Pure; report and live view share it.

A rule compares the end of a run (its last fifth, MOST rows at most) with its start or with a bound. It speaks of shares
in per cent and names the step from which on it holds, so that a person can look there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from deploy.health_model import MODEL_RULES
from deploy.health_numbers import HealthFinding, Level, Numbers, Rows, Rule, percent

WAITING = 0.6
AT_BOUND = 0.8


def findings(
    steps: Rows,
    evaluations: Rows,
    setting: Callable[[str, Any], Any],
    events: Sequence[Mapping[str, Any]] = (),
    *,
    finished: bool = False,
) -> list[HealthFinding]:
    """Everything there is to say, the worst first. `setting(path, default)` reads the run's configuration.

    What has finished without a step was not to train, as an evaluation: nothing is missing then, and nothing praised.
    """
    if not steps and not finished:
        return [HealthFinding(Level.WATCH, "No optimizer step yet", "The run has not trained a window so far.")]
    numbers = Numbers(steps, evaluations, setting, events)
    found = [finding for rule in RULES for finding in rule(numbers)]
    if steps and all(finding.level is Level.GOOD for finding in found):
        found.append(HealthFinding(Level.GOOD, "Nothing stands out", "All health counters are within their bounds."))
    return sorted(found, key=lambda finding: list(Level).index(finding.level))


def verdict(found: Sequence[HealthFinding]) -> tuple[Level, str]:
    """The findings in one word or two: `(Level.BAD, "2 to act on, 1 to watch")`."""
    if not found:
        return Level.GOOD, "not trained"
    counts = {level: sum(finding.level is level for finding in found) for level in Level}
    if not counts[Level.BAD] and not counts[Level.WATCH]:
        return Level.GOOD, "healthy"
    words = ((Level.BAD, "to act on"), (Level.WATCH, "to watch"))
    parts = [f"{counts[level]} {text}" for level, text in words if counts[level]]
    return (Level.BAD if counts[Level.BAD] else Level.WATCH), ", ".join(parts)


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
        Level.WATCH, "The learner waits", f"The learner waited for rollouts {percent(share)} of the time: {change}."
    )


def _staleness(n: Numbers) -> Iterator[HealthFinding]:
    """Only for bounds above 1: with 1 the overlap itself is at the bound."""
    bound = n.setting("rollout.max_staleness", 0)
    values = n.values("policy/staleness_max")
    if bound > 1 and sum(value >= bound for value in values) > AT_BOUND * len(values):
        yield HealthFinding(
            Level.WATCH,
            "Staleness at its bound",
            f"Nearly every window was rolled out {bound} versions ago (rollout.max_staleness is {bound}), so the "
            "learner is the slower side: lower rollout.max_staleness to 1, or add learner ranks.",
        )


def _fill(n: Numbers) -> Iterator[HealthFinding]:
    fill, wanted = n.end("packing/post_rollout_fill"), n.setting("training.packing_min_fill_ratio", 0.65)
    if n.setting("training.packing", True) and fill is not None and fill < wanted:
        yield HealthFinding(
            Level.WATCH,
            "Packs are half empty",
            f"Packs are filled to {percent(fill)}, training.packing_min_fill_ratio is {percent(wanted)}: "
            "larger windows, fewer ranks, or a smaller global_max_length.",
        )


def _counted(metric: str, level: Level, title: str, change: str, *, lasts: bool = False) -> Rule:
    """Something that should not happen at all; a counter adds up over events. What is over and done with is told while
    it is recent, what `lasts` always."""

    def rule(n: Numbers) -> Iterator[HealthFinding]:
        rows = n.series(metric) if lasts else n.recent(metric)
        steps = [step for step, value in rows if value > 0]
        if steps:
            when = "so far" if lasts else f"since step {rows[0][0]:.0f}"
            count = sum(value for _, value in rows)
            yield HealthFinding(level, title, f"{count:.0f} {when}, the first at step {steps[0]:.0f}: {change}.")

    return rule


def _quarantine(n: Numbers) -> Iterator[HealthFinding]:
    count = (n.values("rollout/quarantined") or [0.0])[-1]
    if count:
        yield HealthFinding(
            Level.WATCH, "Records in quarantine", f"{count:.0f} records were set aside: read quarantine.jsonl."
        )


def _restarted(n: Numbers) -> Iterator[HealthFinding]:
    if restarts := n.events("restart"):
        yield HealthFinding(
            Level.WATCH,
            "The learner was restarted",
            f"{len(restarts)} so far, the last went back to step {restarts[-1]['step']}: {restarts[-1]['cause']}.",
        )


RULES: tuple[Rule, ...] = (
    *MODEL_RULES,
    _waiting,
    _staleness,
    _fill,
    _counted("train/skipped_steps", Level.BAD, "Skipped optimizer steps", "lower training.learning_rate"),
    _counted("rollout/actor_restarts", Level.WATCH, "Actors were restarted", "read events.jsonl and the actor's log"),
    _counted("rollout/oversize_dropped", Level.WATCH, "Targets too long", "raise global_max_length", lasts=True),
    _counted("dump/failed", Level.WATCH, "Dumps could not be written", "read the driver's log"),
    _counted("dump/dropped", Level.WATCH, "Dumps were dropped", "write fewer, or to a faster disk"),
    _quarantine,
    _restarted,
)
