"""Health rules about what the model says: scores, format, lengths. `deploy.health_rules` has the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from deploy.health_numbers import HealthFinding, Level, Numbers, Rule, percent
from protocol.config.rules import MATCHING

USABLE, UNUSABLE = 0.9, 0.5
TRUNCATED = 0.05
REJECTED = 0.10
DUPLICATES = 0.10
PREDICTIONS_PER_TRUTH = 1.5
COLLAPSE = 0.5
HARDLY_ANY = 0.05
"""F1 that a model may have by chance, and lose."""
RISE = 0.01
FALL = 0.03
WORDS_FALL = 0.05


def _quality(n: Numbers) -> Iterator[HealthFinding]:
    """Of the evaluation where it ran twice: its first and last score; else of the rollouts: their start and end."""
    evaluated = n.values("eval_rollout_f1")
    values = evaluated if len(evaluated) > 1 else n.values("rollout/f1")
    if len(values) < 2:
        return
    if values is evaluated:
        what, start, end, best = "F1 of the evaluation", values[0], values[-1], max(values)
    else:
        what, start, end = "F1 of the rollouts", n.start("rollout/f1") or 0.0, n.end("rollout/f1") or 0.0
        best = n.best("rollout/f1") or 0.0
    if end < COLLAPSE * best and best >= HARDLY_ANY:
        yield HealthFinding(
            Level.BAD,
            "F1 has collapsed",
            f"{what} is {end:.3f} after a best of {best:.3f}: stop, go back to the best checkpoint, "
            "look at the worst samples, lower training.learning_rate.",
        )
    elif end - start >= RISE:
        yield HealthFinding(Level.GOOD, "F1 rises", f"{what} rose from {start:.3f} to {end:.3f}.")
    elif start - end >= FALL:
        yield HealthFinding(
            Level.WATCH,
            "F1 is lower than at the start",
            f"{what} went from {start:.3f} to {end:.3f}: look at precision and recall for which of the two fell, "
            "and at the worst samples; lower training.learning_rate.",
        )
    if len(evaluated) >= 4 and evaluated[-1] < evaluated[-2] < evaluated[-3] < evaluated[-4]:
        yield HealthFinding(
            Level.BAD, "F1 falls", f"F1 of the evaluation fell three times in a row, to {evaluated[-1]:.3f}: stop here."
        )


def _words(n: Numbers) -> Iterator[HealthFinding]:
    """F1 does not see it: a pair is a pair by its shapes."""
    exact = n.values("eval_rollout_desc_exact_acc_on_matched")
    if len(exact) > 1 and exact[0] - exact[-1] > WORDS_FALL:
        yield HealthFinding(
            Level.WATCH,
            "Descriptions got worse",
            f"Of the evaluation's matched objects {percent(exact[0])} had exactly the true description at first, "
            f"{percent(exact[-1])} have it now, which F1 does not see. Descriptions have no loss, but where "
            "teach_format finds nothing to keep: they move with the weights that boxes are trained on. Lower "
            "training.learning_rate, train adapters (tuner.train_type: lora), or choose a checkpoint by F1 and this "
            "share together: by the share alone the least trained would be the best.",
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
    if not lost and n.setting(f"{MATCHING}.teach_format", False):
        yield HealthFinding(
            Level.WATCH,
            "The format is being taught",
            f"{percent(usable)} of the rollouts hold a valid object, {percent(before)} at the start: where this does "
            "not rise, look at the worst samples, and at prefix_policy: matched.",
        )
        return
    cause = (
        "the format is being lost, lower training.learning_rate"
        if lost
        else "use a checkpoint that was trained with these prompts, or teach it (teach_format: true)"
    )
    yield HealthFinding(
        Level.BAD,
        "Rollouts without a valid object" if lost else "The model does not speak the format",
        f"{percent(usable)} of the rollouts hold a valid object, {percent(before)} at the start: look at the worst "
        f"samples; {cause}.",
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
        after = f" after step {since:.0f}" if since is not None else ""
        moved = f"rose from {percent(start)} to {percent(end)}{after}" if end > start else f"is {percent(end)}"
        advice = change if isinstance(change, str) else change(n)
        yield HealthFinding(level, title, f"{what} {moved}: {advice}.")

    return rule


def _against_truncation(n: Numbers) -> str:
    """Rollouts are cut off, or they end by themselves with their JSON open, or there is hardly any JSON."""
    usable = n.end("rollout/sample_valid_pred_rate")
    if usable is not None and usable < UNUSABLE:
        return "hardly any rollout holds an object, so mend that first"
    most = n.setting(f"{MATCHING}.max_new_tokens", 0)
    longest = n.end("rollout/gen_new_tokens_p99")
    if most and longest is not None and longest < 0.95 * most:
        return (
            f"nearly all end by themselves, with {longest:.0f} of {most} new tokens and their JSON open: "
            "the format is being lost, look at the worst samples"
        )
    return "raise max_new_tokens or the guard (repeat_terminate)"


def _lengths(n: Numbers) -> Iterator[HealthFinding]:
    """Silent where truncation is told already."""
    most = n.setting(f"{MATCHING}.max_new_tokens", 0)
    longest = n.end("rollout/gen_new_tokens_p90")
    cut = n.end("rollout/parse_truncated_rate") or 0.0
    if most > 1 and longest is not None and longest >= most and cut <= TRUNCATED:
        yield HealthFinding(
            Level.WATCH,
            "Rollouts reach their limit",
            f"A tenth of the rollouts uses all {most} new tokens: raise max_new_tokens, or enable repeat_terminate.",
        )


_cut_off = _rate(
    "rollout/parse_truncated_rate", TRUNCATED, Level.BAD, "Truncated rollouts", "truncation", _against_truncation
)


def _truncation(n: Numbers) -> Iterator[HealthFinding]:
    """Silent where one new token is asked for: every rollout is cut off then, and is meant to be."""
    if n.setting(f"{MATCHING}.max_new_tokens", 0) != 1:
        yield from _cut_off(n)


MODEL_RULES: tuple[Rule, ...] = (
    _quality,
    _words,
    _precision,
    _format,
    _truncation,
    _rate(
        "rollout/parse_obj_drop_frac",
        REJECTED,
        Level.BAD,
        "Invalid objects",
        "the share of rejected objects",
        "the format is being lost; the report counts the reasons",
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
)
