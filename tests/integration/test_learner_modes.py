"""Real DeepSpeed in two processes: the mode, the sharding and the packing must not change what is learned.

A covering subset; `python -m tests.integration.learner_matrix` runs every combination.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from learner.model import part_of
from learner.settings import TunerSettings
from protocol.segments import Segment
from tests.integration.learner_cases import (
    CARRIED_WHOLE,
    DORA,
    LORA,
    ONE_PACK,
    SHARDED,
    SHARDED_OTHERWISE,
    TWO_PACKS,
    Ranks,
    assert_same,
    assert_skips,
    carried_windows,
    case_settings,
)
from tests.learner import tiny

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("cluster")]
WITH_HEAD = replace(LORA, modules_to_save=("lm_head", "norm"))


@pytest.fixture(scope="module")
def one(cluster: None, start: Path) -> Iterator[Ranks]:
    ranks = Ranks(1, tiny.settings(start))
    yield ranks
    ranks.close()


@pytest.fixture(scope="module")
def two(cluster: None, start: Path) -> Iterator[Ranks]:
    ranks = Ranks(2, tiny.settings(start))
    yield ranks
    ranks.close()


@pytest.mark.parametrize("tuner", [tiny.FULL, LORA, DORA, WITH_HEAD], ids=["full", "lora", "dora", "modules_to_save"])
def test_sharding_packing_and_zero_stage_change_nothing(
    start: Path, segments: list[Segment], one: Ranks, two: Ranks, tuner: TunerSettings
) -> None:
    reference = one.case(case_settings(start, 0, tuner), [ONE_PACK, ONE_PACK], segments)
    assert reference[0].manifest is not None
    assert reference[0].manifest.changed_tensors > 0
    assert_same(one.case(case_settings(start, 2, tuner), [TWO_PACKS, ONE_PACK], segments), reference)
    assert_same(one.case(case_settings(start, 0, tuner, packing=False), [TWO_PACKS, ONE_PACK], segments), reference)
    assert_same(
        two.case(case_settings(start, 2, tuner), carried_windows(segments, 2), segments),
        one.case(case_settings(start, 0, tuner), CARRIED_WHOLE, segments),
    )
    for stage in (0, 2, 3):
        assert_same(two.case(case_settings(start, stage, tuner), [SHARDED, SHARDED_OTHERWISE], segments), reference)


def test_pixels_of_the_next_micro_batch_are_read_while_this_one_is_trained(
    start: Path, segments: list[Segment], two: Ranks
) -> None:
    two.prepare(case_settings(start, 0))
    in_order = [rank.loss for rank in two.step(SHARDED, segments)]
    two.prepare(case_settings(start, 0))
    late = two.call("step_reading_late", SHARDED, segments, segments[3].key)
    assert [rank.loss for rank in late] == in_order


def test_recomputed_activations_change_nothing(start: Path, segments: list[Segment], one: Ranks, two: Ranks) -> None:
    reference = one.case(case_settings(start, 0), [ONE_PACK], segments)
    assert_same(two.case(case_settings(start, 1, gradient_checkpointing=True), [SHARDED], segments), reference)
    assert_same(two.case(case_settings(start, 3, gradient_checkpointing=True), [SHARDED], segments), reference)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bfloat16_follows_float32_and_is_served_rounded(
    start: Path, segments: list[Segment], two: Ranks, stage: int
) -> None:
    exact = two.case(case_settings(start, 0, LORA), [SHARDED], segments)
    rounded = two.case(case_settings(start, stage, LORA, torch_dtype="bfloat16"), [SHARDED], segments)
    assert sum(o.losses[0] for o in rounded) == pytest.approx(sum(o.losses[0] for o in exact), rel=1e-2)
    assert rounded[0].norms[0] == pytest.approx(exact[0].norms[0], rel=5e-2)
    assert rounded[0].manifest is not None
    assert {entry.dtype for entry in rounded[0].manifest.tensors} == {"bfloat16"}
    assert rounded[0].manifest.changed_tensors > 0


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_rates_of_parts_and_clipping_reach_the_weights(
    start: Path, segments: list[Segment], two: Ranks, stage: int
) -> None:
    # With an epsilon far above the gradients AdamW's first update is proportional to gradient and rate.
    plain = tiny.optimizer(learning_rate=1.0, weight_decay=0.0, epsilon=100.0)
    two.prepare(case_settings(start, stage, optimizer=plain))
    before = two.publish()
    norm = two.step(SHARDED, segments)[0].grad_norm
    moved = {name: weights - before[name] for name, weights in two.publish().items()}
    clipped = replace(plain, max_grad_norm=norm / 4, aligner_lr=0.5, vit_lr=0.0)
    two.prepare(case_settings(start, stage, optimizer=clipped))
    assert [rank.learning_rate for rank in two.step(SHARDED, segments)] == [1.0, 1.0], "that of the language model"
    for name, weights in two.publish().items():
        share = {"language": 1 / 4, "aligner": 1 / 8, "vision": 0.0}[part_of(name)]
        difference = np.abs(weights - before[name] - share * moved[name]).max()
        assert difference <= 1e-3 * max(1e-4, np.abs(moved[name]).max()), name


@pytest.mark.parametrize(
    ("stage", "dtype"), [*((stage, "float32") for stage in range(4)), *((stage, "bfloat16") for stage in (1, 2, 3))]
)
def test_a_step_that_is_not_finite_is_skipped_everywhere_and_named(
    start: Path, segments: list[Segment], two: Ranks, stage: int, dtype: str
) -> None:
    assert_skips(two, case_settings(start, stage, torch_dtype=dtype), segments)


@pytest.mark.parametrize(("stage", "tuner"), [(0, LORA), (2, tiny.FULL), (3, LORA)], ids=["lora-0", "full-2", "lora-3"])
def test_a_resumed_run_gives_the_same_losses_and_weights(
    start: Path, tmp_path: Path, segments: list[Segment], two: Ranks, stage: int, tuner: TunerSettings
) -> None:
    chosen = case_settings(start, stage, replace(tuner, dropout=0.2 if tuner.kind == "lora" else 0.0))
    first = two.case(chosen, [SHARDED, SHARDED_OTHERWISE], segments)
    two.call("save_checkpoint", tmp_path)
    rest = [[rank.loss for rank in two.step(plan, segments)] for plan in (SHARDED, SHARDED_OTHERWISE)]
    unbroken = two.publish()
    resumed = two.case(chosen, [SHARDED, SHARDED_OTHERWISE], segments, tmp_path)
    assert [[outcome.losses[step] for outcome in resumed] for step in range(2)] == rest
    assert all(np.array_equal(weights, unbroken[name]) for name, weights in resumed[0].weights.items())
    assert any(not np.array_equal(weights, first[0].weights[name]) for name, weights in unbroken.items())


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_state_below_stage_3_resumes_on_another_number_of_ranks(
    start: Path, tmp_path: Path, segments: list[Segment], one: Ranks, two: Ranks, stage: int
) -> None:
    two.case(case_settings(start, stage), [SHARDED], segments)
    two.call("save_checkpoint", tmp_path)
    unbroken = [sum(rank.loss for rank in two.step(SHARDED, segments)) for _ in range(2)]
    resumed = one.case(case_settings(start, stage), [ONE_PACK, ONE_PACK], segments, tmp_path)
    assert resumed[0].losses == pytest.approx(unbroken, rel=1e-5)
