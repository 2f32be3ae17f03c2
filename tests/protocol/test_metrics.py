"""Sums become rates in one place; names come from one table, and docs/metrics.md is that table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from protocol.contracts import RequestKey
from protocol.errors import ConfigError, ContractError
from protocol.event_metrics import (
    evaluation_timing,
    generation_metrics,
    plan_metrics,
    policy_metrics,
    window_metrics,
)
from protocol.metric_table import (
    METRICS,
    as_markdown,
    assert_known,
    check_evaluation_metric,
    metric,
)
from protocol.metrics import RolloutTotals
from protocol.segments import PackPlan, SegmentMeta, SegmentStats

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"

ONE = SegmentStats(
    gt_objects=3,
    valid_predictions=2,
    matched_pairs=1,
    matched_for_supervision=1,
    fn_appended=2,
    gating_rejections=4,
    matched_maskiou_sum=0.8,
    parse_dropped_invalid=1,
    parse_truncated=1,
    duplicates=1,
    prefix_coord_targets=1,
    tail_ignored=1,
    prompt_len=3,
    rollout_len=5,
    prefix_len=3,
    train_len=7,
    encoded_len=11,
    desc_pairs_total=1,
    desc_exact_ok=1,
)
SEMANTIC = dataclasses.replace(ONE, desc_sem_segments=1, desc_sem_ok=1, desc_sem_sim_sum=0.9, desc_sem_sim_count=1)
EXCLUDED = dataclasses.replace(ONE, matched_for_supervision=0, excluded_from_supervision=1, train_len=9, rollout_len=9)
EMPTY = SegmentStats(gt_objects=1, decode_mode="beam")


def test_one_segment_gives_the_numbers_of_the_worked_example() -> None:
    metrics = RolloutTotals.of([ONE]).rollout_metrics(top_k=5)
    expected = {
        "parse_obj_total": 3,
        "parse_obj_valid_frac": 2 / 3,
        "parse_obj_drop_frac": 1 / 3,
        "gating_rejection_rate": 0.4,
        "match_rate": 1 / 3,
        "precision": 0.5,
        "recall": 1 / 3,
        "f1": 0.4,
        "fp": 1,
        "fn": 2,
        "fp_per_sample": 1,
        "matched_maskiou_mean": 0.8,
        "prefix_coord_targets_per_matched": 1,
        "tail_ignore_frac": 0.25,
        "append_len_mean": 4,
        "duplicate_rate": 0.5,
        "decode_greedy": 1,
        "decode_beam": 0,
        "parse_dropped_ambiguous": 0,
    }
    assert {name: metrics[f"rollout/{name}"] for name in expected} == pytest.approx(expected)


def test_rates_come_from_sums_and_not_from_averaged_rates() -> None:
    one, other = SegmentStats(valid_predictions=1, matched_for_supervision=1, gt_objects=1), ONE
    assert RolloutTotals.of([one, other]).rollout_metrics(5)["rollout/precision"] == pytest.approx(2 / 3)


def test_excluded_pairs_count_in_evaluation_but_not_in_training() -> None:
    totals = RolloutTotals.of([ONE, EXCLUDED])
    training, evaluation = totals.rollout_metrics(5), totals.evaluation_metrics()
    assert training["rollout/precision"] == 0.25
    assert training["rollout/sample_any_match_rate"] == 0.5
    assert training["rollout/excluded_rate"] == 0.5
    assert evaluation["eval_rollout_precision"] == 0.5
    assert evaluation["eval_rollout_sample_any_match_rate"] == 1.0
    assert evaluation["eval_rollout_matched"] == 2.0
    assert training["rollout/matched_maskiou_count"] == 2.0


def test_percentiles_are_interpolated_over_segments() -> None:
    metrics = RolloutTotals.of([ONE, EXCLUDED]).rollout_metrics(5)
    assert metrics["rollout/rollout_len_mean"] == 7.0
    assert metrics["rollout/rollout_len_p90"] == pytest.approx(8.6)


def test_nothing_trained_is_all_zeros() -> None:
    assert set(RolloutTotals().rollout_metrics(5).values()) == {0.0}
    assert set(RolloutTotals().evaluation_metrics().values()) == {0.0}


def test_desc_keys_are_there_only_when_the_monitor_ran() -> None:
    totals = RolloutTotals.of([ONE, EMPTY])
    assert not [name for name in totals.evaluation_metrics() if "desc" in name]
    exact = totals.evaluation_metrics(desc_enabled=True)
    assert exact["eval_rollout_desc_exact_acc_on_matched"] == 1.0
    assert exact["eval_rollout_desc_sem_enabled"] == 0.0
    assert "eval_rollout_desc_sem_sim_mean" not in exact
    compared = RolloutTotals.of([SEMANTIC]).rollout_metrics(5, desc_enabled=True)
    assert compared["rollout/desc_sem_sim_mean"] == 0.9


def test_desc_accuracy_without_pairs_is_one() -> None:
    compared = dataclasses.replace(EMPTY, desc_sem_segments=1)
    metrics = RolloutTotals.of([compared]).evaluation_metrics(desc_enabled=True)
    assert metrics["eval_rollout_desc_exact_acc_on_matched"] == 1.0
    assert metrics["eval_rollout_desc_sem_acc_on_matched"] == 1.0
    assert metrics["eval_rollout_desc_sem_sim_mean"] == 0.0


def test_semantics_count_only_when_every_process_had_the_encoder() -> None:
    for metrics in (RolloutTotals.of([SEMANTIC, ONE]), RolloutTotals()):
        assert metrics.rollout_metrics(5, desc_enabled=True)["rollout/desc_sem_enabled"] == 0.0
    assert RolloutTotals.of([SEMANTIC]).rollout_metrics(5, desc_enabled=True)["rollout/desc_sem_enabled"] == 1.0


def test_generation_statistics_are_absent_when_nothing_was_generated() -> None:
    assert generation_metrics([], 0.0) == {"time/rollout_generate_s": 0.0}
    metrics = generation_metrics([10, 20], 2.0)
    assert metrics["rollout/gen_tokens_per_s"] == 15.0
    assert metrics["rollout/gen_new_tokens_p90"] == pytest.approx(19.0)
    assert metrics["rollout/gen_new_tokens_p99"] == pytest.approx(19.9)
    assert generation_metrics([10], 0.5)["rollout/gen_tokens_per_s"] == 20.0


def test_packing_metrics_count_an_empty_pack_as_a_forward() -> None:
    plan = PackPlan(micro_batches=(((0,), (1,)), ((2,), ())), carried=(3,))
    metrics = plan_metrics(plan, [10, 10, 10, 5], capacity=10)
    assert metrics["packing/post_rollout_fill"] == 0.75
    assert metrics["packing/post_rollout_segments"] == 0.75
    assert metrics["packing/post_rollout_buffer"] == 1.0
    assert metrics["packing/empty_packs"] == 1.0
    assert metrics["packing/cost_imbalance"] == pytest.approx(2 / 3)
    forwards = {name: metrics[f"packing/{name}"] for name in ("micro_batches", "empty_packs", "cost_imbalance")}
    without = plan_metrics(plan, [10, 10, 10, 5], capacity=None)
    assert without == {f"packing/{name}": value for name, value in forwards.items()}, "there is nothing to fill"
    assert set(plan_metrics(PackPlan(micro_batches=()), [], 10).values()) == {0.0}


def test_packs_below_the_least_fill_are_counted_and_empty_ones_are_not() -> None:
    plan = PackPlan(micro_batches=(((0,), (1,)), ((2,), ())))
    assert plan_metrics(plan, [10, 6, 7], 10, min_fill=0.65)["packing/underfilled_packs"] == 1
    assert plan_metrics(plan, [10, 5, 1], 10, min_fill=0.5)["packing/underfilled_packs"] == 1, "a half is half full"


def test_policy_metrics_name_the_oldest_and_the_newest_version() -> None:
    metas = [
        SegmentMeta(
            key=RequestKey(first),
            length=1,
            num_bytes=4,
            first_version=first,
            last_version=last,
            stats=ONE,
        )
        for first, last in [(4, 4), (3, 5)]
    ]
    metrics = policy_metrics(metas, version=5)
    assert [metrics[f"policy/{name}"] for name in ("first_version_min", "last_version_max", "staleness_max")] == [
        3,
        5,
        2,
    ]
    assert policy_metrics([], version=5) == {"policy/version": 5.0}


def test_every_name_that_is_made_here_is_in_the_table() -> None:
    totals = RolloutTotals.of([SEMANTIC])
    assert_known(totals.rollout_metrics(5, desc_enabled=True))
    assert_known(totals.evaluation_metrics(desc_enabled=True))
    assert_known(evaluation_timing(1, 1, 1.0))
    assert_known(generation_metrics([1], 1.0))
    plan = PackPlan(micro_batches=(((0,),),))
    assert_known(plan_metrics(plan, [1], 10))
    assert_known(policy_metrics([], 0))


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(
        ContractError, match=r"'rollout/presicion' is not in the table .*nearest known: rollout/precision"
    ):
        assert_known(["rollout/f1", "rollout/presicion"])


@pytest.mark.parametrize("name", ["rollout/f1", "eval_token_acc", "rollout_f1", ""])
def test_only_what_evaluation_produces_selects_the_best_checkpoint(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^training\.metric_for_best_model: "):
        check_evaluation_metric(name)


def test_the_usual_best_model_metric_is_accepted() -> None:
    check_evaluation_metric("eval_rollout_f1")


def test_every_metric_says_its_unit_and_meaning() -> None:
    assert len(METRICS) > 100
    for entry in METRICS:
        assert entry.meaning.endswith("."), entry.name
        assert entry.unit in {"1", "tokens", "tokens/s", "1/s", "seconds", "bytes"}, entry.name
        assert metric(entry.name) is entry


def names(text: str) -> list[str]:
    return text.split()


SPEC_15 = names("""
    rollout/gt_objects rollout/valid_pred_objects rollout/matched_for_supervision rollout/excluded_from_supervision
    rollout/fn_appended rollout/fp rollout/fn rollout/precision rollout/recall rollout/match_rate rollout/f1
    rollout/gt_per_sample rollout/pred_per_sample rollout/fp_per_sample rollout/fn_per_sample
    rollout/sample_valid_pred_rate rollout/sample_any_match_rate rollout/parse_dropped_invalid
    rollout/parse_dropped_ambiguous rollout/parse_truncated rollout/parse_truncated_rate rollout/parse_obj_total
    rollout/parse_obj_valid_frac rollout/parse_obj_drop_frac rollout/gating_rejections rollout/gating_rejection_rate
    rollout/matched_maskiou_mean rollout/matched_maskiou_count rollout/excluded_rate
    rollout/prefix_coord_targets_total rollout/prefix_coord_targets_per_matched rollout/tail_ignore_frac
    rollout/prompt_len_mean rollout/prompt_len_p90 rollout/rollout_len_mean rollout/rollout_len_p90
    rollout/train_len_mean rollout/train_len_p90 rollout/append_len_mean rollout/append_len_p90
    rollout/encoded_len_mean rollout/encoded_len_p90 rollout/prefix_len_mean rollout/decode_greedy rollout/decode_beam
    loss/ce loss/coord loss/coord_prefix loss/coord_tail time/forward_s time/mask_build_s time/rollout_generate_s
    time/rollout_parse_match_s time/rollout_teacher_encode_s rollout/gen_new_tokens_total rollout/gen_new_tokens_mean
    rollout/gen_new_tokens_p90 rollout/gen_new_tokens_p99 rollout/gen_tokens_per_s packing/post_rollout_fill
    packing/post_rollout_selected_total_len packing/post_rollout_segments packing/post_rollout_buffer
    time/post_rollout_pack_s rollout/buffer_reuse rollout/buffer_window_step0 rollout/buffer_completed_steps
    rollout/duplicates rollout/duplicate_rate
""")
DESC = names("""
    desc_pairs_total desc_exact_acc_on_matched desc_sem_enabled desc_sem_acc_on_matched desc_sem_sim_mean
    desc_sem_sim_count
""")
SPEC_16 = [f"rollout/{name}" for name in DESC]
EVALUATED = names("""
    precision recall f1 pred_objects gt_objects matched fp fn gating_rejections parse_dropped_invalid
    parse_dropped_ambiguous parse_truncated_rate sample_valid_pred_rate sample_any_match_rate matched_maskiou_mean
""")
SPEC_17 = [f"eval_rollout_{name}" for name in (*EVALUATED, *DESC)]
SPEC_17 += names("eval_runtime eval_samples_per_second eval_steps_per_second")
LEFT_OUT = {"rollout/buffer_micro_idx": "there is one event per optimizer step and none per micro-batch"}


@pytest.mark.parametrize("name", [*SPEC_15, *SPEC_16, *SPEC_17])
def test_the_specifications_keys_keep_their_names(name: str) -> None:
    assert_known([name])


def test_what_is_left_out_is_said_with_its_reason() -> None:
    for name, reason in LEFT_OUT.items():
        assert name in as_markdown()
        assert reason in as_markdown().replace("\n", " ")


def test_a_live_metric_is_no_event() -> None:
    assert metric("actor/state").labels == ("actor", "phase")
    with pytest.raises(ContractError, match="actor/state"):
        assert_known(["actor/state"])


def test_the_reference_page_of_metrics_is_current() -> None:
    assert DOCS.read_text(encoding="utf-8") == as_markdown(), "run python -m protocol.metric_table > docs/metrics.md"


MIXED = (
    dataclasses.replace(ONE, valid_predictions=4, gt_objects=5, cut_fallback=1),
    dataclasses.replace(EXCLUDED, parse_truncated=0, repeat_terminated=1),
    dataclasses.replace(EMPTY, parse_truncated=1, parse_dropped_invalid=3),
    dataclasses.replace(EMPTY, fn_appended=1),
)
"""Sums differ and few rates are 0 or 1: one that is exchanged for another shows."""


def test_each_number_of_training_is_that_of_its_counters() -> None:
    metrics = RolloutTotals.of(MIXED).rollout_metrics(top_k=5)
    expected = {
        "segments": 4,
        "gt_objects": 10,
        "valid_pred_objects": 6,
        "matched_for_supervision": 1,
        "excluded_from_supervision": 1,
        "fn_appended": 5,
        "sample_valid_pred_rate": 2 / 4,
        "sample_any_match_rate": 1 / 4,
        "parse_dropped_invalid": 5,
        "parse_truncated": 2,
        "parse_truncated_rate": 2 / 4,
        "parse_obj_total": 11,
        "gating_rejections": 8,
        "gating_rejection_rate": 8 / 30,
        "prefix_coord_targets_total": 2,
        "tail_ignore_frac": 2 / 10,
        "cut_fallback": 1,
        "duplicates": 2,
        "duplicate_rate": 2 / 6,
        "repeat_terminated": 1,
        "gt_per_sample": 10 / 4,
        "pred_per_sample": 6 / 4,
        "fp_per_sample": 5 / 4,
        "fn_per_sample": 9 / 4,
        "prefix_len_mean": 6 / 4,
        "decode_greedy": 2,
        "decode_beam": 2,
    }
    assert {name: metrics[f"rollout/{name}"] for name in expected} == pytest.approx(expected)


def test_each_number_of_an_evaluation_is_that_of_its_counters() -> None:
    metrics = RolloutTotals.of(MIXED).evaluation_metrics()
    expected = {
        "precision": 2 / 6,
        "recall": 2 / 10,
        "f1": 2 / 8,
        "fp": 4,
        "fn": 8,
        "pred_objects": 6,
        "gt_objects": 10,
        "matched": 2,
        "gating_rejections": 8,
        "parse_dropped_invalid": 5,
        "parse_dropped_ambiguous": 0,
        "parse_truncated_rate": 2 / 4,
        "sample_valid_pred_rate": 2 / 4,
        "sample_any_match_rate": 2 / 4,
        "matched_maskiou_mean": 1.6 / 2,
        "duplicate_rate": 2 / 6,
        "samples": 4,
    }
    assert metrics == pytest.approx({f"eval_rollout_{name}": value for name, value in expected.items()})


def test_an_m_step_says_which_window_it_trains_again() -> None:
    metrics = window_metrics(first_step=3, reuse=1)
    assert_known(metrics)
    assert metrics == {
        "rollout/buffer_reuse": 1.0,
        "rollout/buffer_window_step0": 3.0,
        "rollout/buffer_completed_steps": 1.0,
    }
    assert window_metrics(first_step=3, reuse=0)["rollout/buffer_reuse"] == 0.0
