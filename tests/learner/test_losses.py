"""The losses of SPEC 12 against the golden cases, and the chunked head at its corners."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from learner.lm_head import SupervisedHead
from learner.losses import (
    LOGIT_LIMIT,
    LossScales,
    LossSums,
    StepCounts,
    coord_target,
    coord_terms,
    scales,
    weighted_coord,
)
from learner.settings import LossSettings
from protocol.segments import IGNORE_INDEX
from tests.learner.plain_loss import row_loss, terms_of_full_logits

ROOT = Path(__file__).resolve().parents[2]
HOMES = (ROOT / "tests/protocol/golden/cases.json", ROOT.parent / "shared/cases/golden.json")


def golden(area: str) -> list[Any]:
    home = next((path for path in HOMES if path.is_file()), None)
    if home is None:
        return [pytest.param({}, marks=pytest.mark.skip(reason="no golden cases beside the tests or the checkout"))]
    return [pytest.param(case, id=case["id"]) for case in json.loads(home.read_text()) if case["area"] == area]


def spike() -> list[float]:
    return [10.0 if k == 500 else 0.0 for k in range(1000)]


@pytest.mark.parametrize("case", golden("loss"))
def test_golden_loss(case: dict[str, Any]) -> None:
    given, expected = case["input"], case["expected"]
    if "q0" in expected:
        target = coord_target(given["bin"], given["sigma"], given["truncate"], given["K"])
        for name, value in expected.items():
            assert target[int(name[1:])].item() == pytest.approx(value, rel=1e-5)
        return
    by_note = given["coord_logits"] == "see note"
    logits = torch.tensor([spike() if by_note else [float(x) for x in given["coord_logits"]]])
    full = spike() + [0.0] * 200 if by_note else given["full_logits"]
    settings = LossSettings(
        target_sigma=given["sigma"], target_truncate=given["truncate"], temperature=given["temperature"]
    )
    full_logits = None if full is None else torch.tensor([full])
    terms = terms_of_full_logits(logits, torch.tensor([given["target_bin"]]), full_logits, settings)
    for name, value in expected.items():
        assert getattr(terms, name).item() == pytest.approx(value, rel=1e-5, abs=1e-9), name


@pytest.mark.parametrize("case", golden("compute_loss"))
def test_golden_full_step(case: dict[str, Any]) -> None:
    ids = torch.tensor(case["input"]["input_ids"])
    logits = torch.zeros(len(ids), 1100)
    for position, token, value in ((3, 310, 4.0), (5, 1005, 5.0), (6, 41, 3.0), (8, 1007, 2.0)):
        logits[position, token] = value
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[[6, 9]] = ids[[6, 9]]  # tail [6, 10): 6 and 9 are text, 7 is a coordinate, 8 a description
    loss, sums = row_loss(
        logits,
        labels,
        torch.tensor([7, 4]),
        torch.tensor([40, 310]),
        torch.tensor([False, True]),
        torch.arange(1000),
        LossSettings(target_truncate=16),
    )
    logged = case["expected"]["logged"]
    assert loss.item() == pytest.approx(case["expected"]["total"], rel=1e-5)
    assert sums.ce_sum / sums.ce_tokens == pytest.approx(logged["loss/ce"], rel=1e-5)
    assert sums.coord_sum / sums.coord_targets == pytest.approx(logged["loss/coord"], rel=1e-5)
    assert sums.coord_prefix_sum / sums.coord_prefix_count == pytest.approx(logged["loss/coord_prefix"], rel=1e-5)
    assert sums.coord_tail_sum / sums.coord_tail_count == pytest.approx(logged["loss/coord_tail"], rel=1e-5)


def test_a_soft_target_of_no_width_is_refused() -> None:
    with pytest.raises(ValueError, match="target_sigma must be > 0"):
        coord_target(3, 0.0)
    with pytest.raises(ValueError, match="target_truncate must be null or >= 0, got -1"):
        coord_target(3, 1.0, -1)
    assert coord_target(3, 0.5, num_bins=9)[3] == pytest.approx(1 / (1 + 2 * math.exp(-2)), rel=1e-3), "any other works"
    with pytest.raises(ValueError, match="temperature must be > 0"):
        coord_terms(torch.zeros(1, 5), torch.tensor([1]), sigma=1.0, truncate=None, temperature=0.0)


@pytest.mark.parametrize("huge", [3e4, math.inf, 1e4])
def test_coordinate_logits_beyond_the_limit_count_as_the_limit(huge: float) -> None:
    """Seen where a temperature brings them back into the range of a softmax."""
    assert LOGIT_LIMIT == 1e4, "as the reference has it"
    for sign in (1, -1):
        logits = torch.tensor([[sign * huge, 0.0, math.nan, 0.0]])
        terms = coord_terms(logits, torch.tensor([0]), sigma=2.0, truncate=0, temperature=1e4)
        assert terms.soft_ce.item() == pytest.approx(math.log(math.exp(sign) + 3) - sign, rel=1e-6)


def test_sums_add_up() -> None:
    one = LossSums(6.0, 3, 4.0, 2, 1.0, 1, 3.0, 1)
    assert one + one == LossSums(12.0, 6, 8.0, 4, 2.0, 2, 6.0, 2)
    assert one + LossSums() == one


def test_global_scales_do_not_depend_on_how_a_step_is_cut() -> None:
    counts = StepCounts(ce_tokens=10, coord_targets=4, num_micro_batches=3)
    parts = [scales("global", counts, ce, coord, world_size=2) for ce, coord in ((1, 0), (9, 4))]
    assert parts == [LossScales(2 / 10, 2 / 4)] * 2


def test_micro_batch_scales_give_the_mean_of_means() -> None:
    counts = StepCounts(ce_tokens=10, coord_targets=4, num_micro_batches=2)
    first, second = (scales("micro_batch", counts, ce, coord, world_size=1) for ce, coord in ((2, 1), (8, 3)))
    assert first.ce * 2 * 5.0 + second.ce * 8 * 7.0 == pytest.approx((5.0 + 7.0) / 2)
    assert first.coord * 1 * 3.0 + second.coord * 3 * 9.0 == pytest.approx((3.0 + 9.0) / 2)


@pytest.mark.parametrize("normalization", ["global", "micro_batch"])
@pytest.mark.parametrize("count", [0, 1])
def test_a_step_that_supervises_nothing_of_a_kind_or_one_divides_by_one(normalization: Any, count: int) -> None:
    counts = StepCounts(ce_tokens=count, coord_targets=count, num_micro_batches=count)
    assert scales(normalization, counts, count, count, world_size=3) == LossScales(3.0, 3.0)


def head_and_targets(vocabulary: int = 1100, hidden: int = 16) -> tuple[torch.nn.Linear, dict[str, torch.Tensor]]:
    rng = torch.Generator().manual_seed(3)
    head = torch.nn.Linear(hidden, vocabulary, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(vocabulary, hidden, generator=rng))
    return head, {
        "hidden": torch.randn(12, hidden, generator=rng),
        "ce_ids": torch.randint(0, vocabulary, (7,), generator=rng),
        "bins": torch.randint(0, 1000, (5,), generator=rng),
    }


def plain(
    head: torch.nn.Linear, data: dict[str, torch.Tensor], loss: LossSettings, ids: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(loss, hidden gradient, weight gradient) through one full [S, V]."""
    hidden = data["hidden"].clone().requires_grad_()
    head.zero_grad()
    logits = head(hidden)
    ce = torch.nn.functional.cross_entropy(logits[:7], data["ce_ids"], reduction="sum")
    terms = terms_of_full_logits(logits[7:][:, ids], data["bins"], logits[7:], loss)
    total = 0.3 * ce + 0.7 * weighted_coord(terms, loss).sum()
    total.backward()
    assert head.weight.grad is not None
    assert hidden.grad is not None
    return total.detach(), hidden.grad, head.weight.grad.clone()


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("gate", [0.0, 0.5])
@pytest.mark.parametrize("frozen", [False, True])
def test_chunks_give_the_gradients_of_the_whole(chunk: int, gate: float, frozen: bool) -> None:
    head, data = head_and_targets()
    loss = LossSettings(gate_weight=gate, w1_weight=2.0, temperature=1.3, target_truncate=16)
    ids = torch.arange(1000) + 50
    expected, hidden_grad, weight_grad = plain(head, data, loss, ids)
    head.zero_grad()
    head.weight.requires_grad_(not frozen)
    chunked = SupervisedHead(head, tuple(ids.tolist()), loss, chunk)
    hidden = data["hidden"].clone().requires_grad_()
    total, ce, coord = chunked(hidden, data["ce_ids"], data["bins"], LossScales(0.3, 0.7))
    (3 * total).backward()  # an upstream factor, such as a loss scale, must reach both gradients
    assert total.item() == pytest.approx(expected.item(), rel=1e-6)
    assert (0.3 * ce.sum() + 0.7 * coord.sum()).item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(hidden.grad, 3 * hidden_grad, rtol=1e-4, atol=1e-6)
    if frozen:
        assert head.weight.grad is None
    else:
        torch.testing.assert_close(head.weight.grad, 3 * weight_grad, rtol=1e-4, atol=1e-6)


def test_no_tensor_of_rows_times_vocabulary_is_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    head, data = head_and_targets()
    rows: list[int] = []
    linear = torch.nn.functional.linear

    def watched(hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        rows.append(hidden.shape[0])
        return linear(hidden, weight)

    monkeypatch.setattr(torch.nn.functional, "linear", watched)
    chunked = SupervisedHead(head, tuple(range(1000)), LossSettings(), chunk_rows=2)
    chunked(data["hidden"], data["ce_ids"], data["bins"], LossScales(1.0, 1.0))
    assert max(rows) == 2
    assert sum(rows) == 12


def test_broken_logits_make_the_loss_not_finite() -> None:
    head, data = head_and_targets()
    with torch.no_grad():
        head.weight[3, 0] = math.nan
    total, _, _ = SupervisedHead(head, tuple(range(1000)), LossSettings())(
        data["hidden"], data["ce_ids"], data["bins"], LossScales(1.0, 1.0)
    )
    assert not np.isfinite(total.item())


def test_half_precision_rows_give_their_losses_in_full_precision() -> None:
    """Losses of bfloat16 have two digits, and a step adds thousands of them."""
    head, data = head_and_targets()
    head, hidden, loss = head.bfloat16(), data["hidden"].bfloat16(), LossSettings()
    chunked = SupervisedHead(head, tuple(range(50, 1050)), loss, chunk_rows=3)
    _, ce, coord = chunked(hidden, data["ce_ids"], data["bins"], LossScales(1.0, 1.0))
    logits = head(hidden).float()
    expected = torch.nn.functional.cross_entropy(logits[:7], data["ce_ids"], reduction="none")
    terms = terms_of_full_logits(logits[7:, 50:1050], data["bins"], logits[7:], loss)
    torch.testing.assert_close(ce, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(coord, weighted_coord(terms, loss), rtol=1e-5, atol=1e-5)


def test_a_supervised_head_adds_nothing_to_a_checkpoint() -> None:
    supervised = SupervisedHead(head_and_targets()[0], tuple(range(1000)), LossSettings())
    assert [*supervised.state_dict(), *dict(supervised.named_parameters())] == []
