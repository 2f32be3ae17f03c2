"""The optimizer's state and step in host memory, as DeepSpeed's JSON asks for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from deepspeed.ops.op_builder import CPUAdamBuilder

from learner.settings import LearnerSettings, TunerSettings
from protocol.segments import Segment
from tests.integration.learner_cases import (
    LORA,
    SHARDED,
    SHARDED_OTHERWISE,
    Ranks,
    assert_same,
    assert_skips,
    case_settings,
)
from tests.learner import tiny

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.usefixtures("cluster")]
CPU = {"device": "cpu", "pin_memory": True}


@pytest.fixture(scope="module")
def kernel() -> None:
    """Compiled before the ranks are asked for anything: it takes minutes, which no call of theirs is given."""
    CPUAdamBuilder().load(verbose=False)


@pytest.fixture(scope="module")
def two(cluster: None, kernel: None, start: Path) -> Iterator[Ranks]:
    ranks = Ranks(2, tiny.settings(start))
    yield ranks
    ranks.close()


def offloading(settings: LearnerSettings, stage: int, *parts: str) -> LearnerSettings:
    return replace(settings, deepspeed={"zero_optimization": {"stage": stage} | dict.fromkeys(parts, CPU)})


@pytest.mark.parametrize("tuner", [tiny.FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("stage", "parts"),
    [
        (1, ("offload_optimizer",)),
        (2, ("offload_optimizer",)),
        (3, ("offload_optimizer",)),
        (3, ("offload_optimizer", "offload_param")),
    ],
)
def test_an_offloaded_optimizer_trains_the_same_weights(
    start: Path, segments: list[Segment], two: Ranks, stage: int, parts: tuple[str, ...], tuner: TunerSettings
) -> None:
    plain = case_settings(start, stage, tuner)
    reference = two.case(plain, [SHARDED, SHARDED_OTHERWISE], segments)
    assert_same(two.case(offloading(plain, stage, *parts), [SHARDED, SHARDED_OTHERWISE], segments), reference)


@pytest.mark.parametrize("before", [True, False], ids=["offloaded before", "not before"])
@pytest.mark.parametrize("stage", [2, 3])
def test_a_resumed_run_may_offload_whether_the_run_before_did_or_not(
    start: Path, tmp_path: Path, segments: list[Segment], two: Ranks, stage: int, before: bool
) -> None:
    plain = case_settings(start, stage)
    chosen = offloading(plain, stage, "offload_optimizer")
    two.case(chosen if before else plain, [SHARDED], segments)
    two.call("save_checkpoint", tmp_path)
    rest = [sum(rank.loss for rank in two.step(SHARDED, segments)) for _ in range(2)]
    resumed = two.case(chosen, [SHARDED, SHARDED], segments, tmp_path)
    assert [sum(rank.losses[step] for rank in resumed) for step in range(2)] == pytest.approx(rest, rel=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_skipped_step_leaves_nothing_behind_in_host_memory(
    start: Path, segments: list[Segment], two: Ranks, stage: int, dtype: str
) -> None:
    chosen = case_settings(start, stage, torch_dtype=dtype)
    assert_skips(two, offloading(chosen, stage, "offload_optimizer"), segments)
