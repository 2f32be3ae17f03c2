"""Health in words: each rule speaks when its condition holds, with numbers and step, and is silent otherwise."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.health_numbers import HealthFinding, Level, Numbers, without_empty_shares
from deploy.health_rules import RULES, findings, verdict


def rows(count: int = 100, **metrics: Any) -> list[dict[str, float]]:
    """One row per step; a metric is a number or a function of the step. `__` stands for `/`."""
    made = []
    for step in range(1, count + 1):
        values = {name.replace("__", "/"): value(step) if callable(value) else value for name, value in metrics.items()}
        made.append({"step": float(step)} | values)
    return made


def said(
    steps: list[dict[str, float]], evaluations: list[dict[str, float]] | None = None, **settings: Any
) -> list[HealthFinding]:
    return findings(steps, evaluations or [], lambda path, default: settings.get(path.split(".")[-1], default))


def test_truncation_is_told_with_its_rise_and_its_step() -> None:
    (found,) = said(rows(rollout__parse_truncated_rate=lambda step: 0.01 if step <= 80 else 0.37))
    assert found.level is Level.BAD
    assert found.text == (
        "truncation rose from 1 % to 37 % after step 80: raise max_new_tokens or the guard (repeat_terminate)."
    )


def test_rollouts_that_end_early_with_open_json_need_another_remedy() -> None:
    (found,) = said(rows(rollout__parse_truncated_rate=0.4, rollout__gen_new_tokens_p99=90.0), max_new_tokens=256)
    assert "end by themselves, with 90 of 256 new tokens" in found.text
    assert "raise max_new_tokens" not in found.text


def test_a_model_without_the_format_is_told_that_first_and_not_to_write_longer() -> None:
    lost = {"rollout__sample_valid_pred_rate": 0.0, "rollout__parse_truncated_rate": 1.0}
    found = said(rows(**lost, rollout__gen_new_tokens_p90=256.0), max_new_tokens=256)
    assert [each.title for each in found] == ["The model does not speak the format", "Truncated rollouts"]
    assert found[1].text == "truncation is 100 %: hardly any rollout holds an object, so mend that first."


def test_a_format_that_is_being_taught_is_watched_and_one_that_is_lost_is_not() -> None:
    (found,) = said(rows(rollout__sample_valid_pred_rate=lambda step: step / 400), teach_format=True)
    assert (found.level, found.title) == (Level.WATCH, "The format is being taught")
    assert found.text.startswith("23 % of the rollouts hold a valid object, 3 % at the start: where this does not rise")
    (found,) = said(rows(rollout__sample_valid_pred_rate=lambda step: 1 - step / 150), teach_format=True)
    assert (found.level, found.title) == (Level.BAD, "Rollouts without a valid object")


@pytest.mark.parametrize("truncated", [0.0, 1.0])
def test_rollouts_of_one_token_are_meant_to_be_cut_off(truncated: float) -> None:
    one = rows(rollout__parse_truncated_rate=truncated, rollout__gen_new_tokens_p90=1.0)
    assert [each.title for each in said(one, max_new_tokens=1)] == ["Nothing stands out"]


def test_a_score_that_never_was_one_does_not_collapse() -> None:
    for best, titles in ((0.049, ["F1 is lower than at the start"]), (0.051, ["F1 has collapsed"])):
        assert [each.title for each in said(rows(rollout__f1=lambda step, best=best: best * (step < 50)))] == titles
    noise = [{"step": float(step), "eval_rollout_f1": score} for step, score in enumerate((0.002, 0.001, 0.0))]
    assert [each.title for each in said(rows(), noise)] == ["Nothing stands out"]


def test_a_share_that_was_high_all_along_did_not_rise() -> None:
    (found,) = said(rows(rollout__parse_truncated_rate=0.4))
    assert found.text.startswith("truncation is 40 %:")
    (found,) = said(rows(rollout__parse_truncated_rate=lambda step: 0.3 if step <= 50 else 0.4))
    assert found.text.startswith("truncation rose from 30 % to 40 %:"), "at no step did it become too high"


def test_scores_that_stay_do_not_fall_three_times() -> None:
    def titles(*scores: float) -> list[str]:
        evaluations = [{"step": float(step), "eval_rollout_f1": score} for step, score in enumerate(scores)]
        return [each.title for each in said(rows(), evaluations)]

    assert "F1 falls" in titles(0.6, 0.55, 0.5, 0.45)
    for scores in ((0.6, 0.6, 0.5, 0.45), (0.6, 0.5, 0.5, 0.45), (0.6, 0.55, 0.5, 0.5)):
        assert "F1 falls" not in titles(*scores)


def test_too_many_predictions_are_told_beside_those_at_the_start() -> None:
    (found,) = said(rows(rollout__gt_per_sample=2.0, rollout__pred_per_sample=lambda step: 3.0 if step <= 50 else 5.0))
    assert found.text.startswith("2.5 predictions per ground-truth object, 1.5 at the start")


@pytest.mark.parametrize(
    ("metrics", "settings", "title", "level"),
    [
        ({"rollout__f1": lambda step: 0.6 if step < 50 else 0.2}, {}, "F1 has collapsed", Level.BAD),
        ({"rollout__f1": lambda step: step / 200}, {}, "F1 rises", Level.GOOD),
        ({"rollout__f1": lambda step: 0.6 - step / 500}, {}, "F1 is lower than at the start", Level.WATCH),
        ({"rollout__gt_per_sample": 2.0, "rollout__pred_per_sample": 4.4}, {}, "Too many predictions", Level.BAD),
        (
            {"rollout__precision": lambda s: 0.8 - s / 400, "rollout__recall": lambda s: 0.4 + s / 400},
            {},
            "Recall without precision",
            Level.WATCH,
        ),
        ({"rollout__sample_valid_pred_rate": lambda s: 1 - s / 150}, {}, "Rollouts without a valid object", Level.BAD),
        ({"rollout__sample_valid_pred_rate": 0.0}, {}, "The model does not speak the format", Level.BAD),
        ({"rollout__parse_obj_drop_frac": 0.2}, {}, "Invalid objects", Level.BAD),
        ({"rollout__duplicate_rate": 0.2}, {}, "Duplicates", Level.BAD),
        ({"rollout__gen_new_tokens_p90": 256.0}, {"max_new_tokens": 256}, "Rollouts reach their limit", Level.WATCH),
        ({"time__wait_rollouts_s": 7.0, "time__step_s": 10.0}, {}, "The learner waits", Level.WATCH),
        ({"policy__staleness_max": 2.0}, {"max_staleness": 2}, "Staleness at its bound", Level.WATCH),
        ({"packing__post_rollout_fill": 0.4}, {"packing_min_fill_ratio": 0.65}, "Packs are half empty", Level.WATCH),
        ({"train__skipped_steps": lambda step: float(step == 77)}, {}, "Skipped optimizer steps", Level.BAD),
        ({"rollout__actor_restarts": lambda step: float(step == 77)}, {}, "Actors were restarted", Level.WATCH),
        ({"rollout__oversize_dropped": 1.0}, {}, "Targets too long", Level.WATCH),
        ({"dump__failed": 1.0}, {}, "Dumps could not be written", Level.WATCH),
        ({"dump__dropped": 1.0}, {}, "Dumps were dropped", Level.WATCH),
        ({"rollout__quarantined": 3.0}, {}, "Records in quarantine", Level.WATCH),
    ],
)
def test_each_condition_has_its_finding(
    metrics: dict[str, Any], settings: dict[str, Any], title: str, level: Level
) -> None:
    found = [each for each in said(rows(**metrics), **settings) if each.title == title]
    assert [each.level for each in found] == [level]


def test_overlap_of_one_version_is_at_its_bound_by_design() -> None:
    found = said(rows(policy__staleness_max=1.0), max_staleness=1)
    assert [each.title for each in found] == ["Nothing stands out"]


def test_a_bound_that_is_seldom_reached_is_no_finding() -> None:
    found = said(rows(policy__staleness_max=lambda step: 2.0 * (step % 2)), max_staleness=2)
    assert [each.title for each in found] == ["Nothing stands out"]


def test_what_a_learner_that_waits_needs_depends_on_whether_both_sides_may_overlap() -> None:
    waiting = rows(time__wait_rollouts_s=7.0, time__step_s=10.0)
    for staleness, advice in (
        (0, "rollout.max_staleness: 1 lets them overlap."),
        (1, "or raise rollout.max_staleness."),
    ):
        (found,) = said(waiting, max_staleness=staleness)
        assert found.text.endswith(advice)
    (found,) = said(waiting)
    assert found.text.endswith("lets them overlap."), "0 where the run says nothing"


def test_packs_are_judged_where_there_are_any_by_what_the_run_wants() -> None:
    half = rows(packing__post_rollout_fill=0.5)
    assert [each.title for each in said(half, packing=False)] == ["Nothing stands out"]
    assert [each.title for each in said(half, packing_min_fill_ratio=0.5)] == ["Nothing stands out"]


def numbers(*values: float) -> Numbers:
    return Numbers(rows(len(values), rollout__f1=lambda step: values[step - 1]), [], lambda _, default: default)


@pytest.mark.parametrize(("count", "width"), [(1, 1), (2, 1), (6, 3), (12, 4), (100, 20), (1000, 50)])
def test_a_start_and_an_end_are_a_fifth_within_limits(count: int, width: int) -> None:
    found, middle = numbers(*map(float, range(1, count + 1))), (width + 1) / 2
    assert found.start("rollout/f1") == middle
    assert found.end("rollout/f1") == found.best("rollout/f1") == count + 1 - middle


def test_a_value_is_above_a_bound_since_it_went_there_to_stay_mostly() -> None:
    def since(*values: float) -> float | None:
        return numbers(*values).since("rollout/f1", 0.5)

    assert since(0, 0, 1, 1, 1) == 2
    assert since(0, 1, 1) == 1
    assert since(0, *[1] * 7, 0, 0, 0) == 1, "7 of 10"
    assert since(0, 1, 0, 0, 0) is None
    assert since(0, 0.5, 0.5) is None
    assert since(1, 1, 1) is None, "it was there from the start"


def test_predictions_where_no_image_shows_anything_are_no_ratio() -> None:
    found = said(rows(rollout__gt_per_sample=0.0, rollout__pred_per_sample=2.0))
    assert "Too many predictions" not in [each.title for each in found]


def test_two_scores_that_hardly_differ_are_no_course() -> None:
    evaluations = [{"step": 0.0, "eval_rollout_f1": 0.600}, {"step": 9.0, "eval_rollout_f1": 0.605}]
    assert [found.title for found in said(rows(), evaluations)] == ["Nothing stands out"]


def test_an_evaluation_whose_descriptions_fall_is_told_though_its_f1_rises() -> None:
    def scored(first: float, last: float) -> list[HealthFinding]:
        found = [(0.0, 0.551, first), (60.0, 0.725, last)]
        return said(
            rows(),
            [
                {"step": step, "eval_rollout_f1": f1, "eval_rollout_desc_exact_acc_on_matched": exact}
                for step, f1, exact in found
            ],
        )

    words, rise = scored(0.442, 0.357)
    assert (words.level, words.title, rise.title) == (Level.WATCH, "Descriptions got worse", "F1 rises")
    assert "44 % had exactly the true description at first, 36 % have it now" in words.text
    assert words.text.endswith("by F1 and this share together: by the share alone the least trained would be the best.")
    assert "metric_for_best_model" not in words.text
    assert "Descriptions got worse" not in [each.title for each in scored(0.442, 0.402)]


def test_a_share_of_no_pairs_is_no_number() -> None:
    empty = {"eval_rollout_desc_pairs_total": 0.0, "eval_rollout_desc_exact_acc_on_matched": 1.0}
    assert without_empty_shares(empty) == {"eval_rollout_desc_pairs_total": 0.0}
    some = empty | {"eval_rollout_desc_pairs_total": 3.0}
    assert without_empty_shares(some) == some


def test_one_bad_window_of_a_short_run_does_not_decide_alone() -> None:
    found = said(rows(12, rollout__parse_truncated_rate=lambda step: 0.09 if step > 10 else 0.0))
    assert [each.title for each in found] == ["Nothing stands out"]


@pytest.mark.parametrize(
    ("metric", "before", "after", "title"),
    [
        ("rollout__parse_truncated_rate", 0.0, 0.1, "Truncated rollouts"),
        ("rollout__f1", 0.6, 0.1, "F1 has collapsed"),
        ("rollout__pred_per_sample", 10.0, 20.0, "Too many predictions"),
        ("rollout__sample_valid_pred_rate", 1.0, 0.0, "Rollouts without a valid object"),
    ],
)
def test_what_goes_wrong_after_many_good_steps_is_told_within_fifty(
    metric: str, before: float, after: float, title: str
) -> None:
    def told(good: int, bad: int) -> bool:
        metrics: dict[str, Any] = {metric: lambda step: before if step <= good else after}
        found = said(rows(good + bad, rollout__gt_per_sample=10.0, **metrics))
        return title in [each.title for each in found]

    assert not told(2000, 1), "no single window decides"
    assert told(2000, 40)


def test_one_and_the_same_model_with_scores_that_scatter_has_not_collapsed() -> None:
    lucky = rows(3000, rollout__f1=lambda step: 0.55 if step == 700 else 0.25 + (0.06 if step % 2 else -0.06))
    assert [each.title for each in said(lucky)] == ["Nothing stands out"]


def test_what_happened_long_ago_is_told_only_where_it_lasts() -> None:
    def titles(metric: str, step: int) -> list[str]:
        metrics: dict[str, Any] = {metric: lambda at: 2.0 * (at == step)}
        return [each.text for each in said(rows(200, **metrics))]

    assert titles("train__skipped_steps", 7) == ["All health counters are within their bounds."]
    assert titles("train__skipped_steps", 170) == [
        "2 since step 151, the first at step 170: lower training.learning_rate."
    ]
    every_tenth = [
        row for row in rows(1000, rollout__actor_restarts=lambda at: float(at == 700)) if not row["step"] % 10
    ]
    (found,) = said(every_tenth)
    assert found.text.startswith("1 since step 510, the first at step 700: ")
    assert titles("rollout__oversize_dropped", 7) == ["2 so far, the first at step 7: raise global_max_length."]


def test_a_learner_that_was_restarted_is_told_with_the_cause_of_the_last_time() -> None:
    events = [{"kind": "restart", "step": step, "cause": f"rank 1 died at {step}"} for step in (4, 8)]
    (found,) = findings(rows(), [], lambda path, default: default, events)
    assert found.text == "2 so far, the last went back to step 8: rank 1 died at 8."


def test_the_verdict_counts_what_needs_somebody() -> None:
    def of(*levels: Level) -> tuple[Level, str]:
        return verdict([HealthFinding(level, "", "") for level in levels])

    assert of(Level.GOOD) == (Level.GOOD, "healthy")
    assert of(Level.WATCH, Level.GOOD) == (Level.WATCH, "1 to watch")
    assert of(Level.BAD, Level.BAD, Level.WATCH) == (Level.BAD, "2 to act on, 1 to watch")


def test_an_evaluation_that_falls_three_times_says_stop() -> None:
    evaluations = [
        {"step": float(step), "eval_rollout_f1": value} for step, value in enumerate([0.5, 0.7, 0.68, 0.65, 0.6])
    ]
    assert "F1 falls" in [found.title for found in said(rows(), evaluations)]
    assert "F1 falls" not in [found.title for found in said(rows(), evaluations[:4])]


def test_a_healthy_run_says_so_and_a_run_without_steps_too() -> None:
    healthy = rows(
        rollout__parse_truncated_rate=0.01,
        rollout__gt_per_sample=2.0,
        rollout__pred_per_sample=2.1,
        packing__post_rollout_fill=0.9,
        train__skipped_steps=0.0,
        time__wait_rollouts_s=1.0,
        time__step_s=10.0,
    )
    assert [found.title for found in said(healthy)] == ["Nothing stands out"]
    assert [found.title for found in said([])] == ["No optimizer step yet"]


def test_what_has_finished_without_a_step_lacks_none_and_is_not_called_healthy() -> None:
    def of(*, finished: bool) -> list[HealthFinding]:
        scores = [{"step": 0.0, "eval_rollout_f1": 0.1}]
        return findings([], scores, lambda path, default: default, finished=finished)

    assert [found.title for found in of(finished=False)] == ["No optimizer step yet"]
    assert of(finished=True) == []
    assert verdict([]) == (Level.GOOD, "not trained")


def test_the_worst_comes_first_and_numbers_that_are_not_finite_do_no_harm() -> None:
    found = said(rows(rollout__f1=lambda s: float("nan") if s == 3 else s / 200, rollout__duplicate_rate=0.2))
    assert [each.level for each in found] == [Level.BAD, Level.GOOD]
    assert len(RULES) == 18
