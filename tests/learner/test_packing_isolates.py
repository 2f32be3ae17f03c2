"""A packed row must give what its segments give alone: loss and every gradient, to 1e-5 in fp32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from learner.collate import Batch, Vision, collate_nothing, collate_packed, collate_padded
from learner.losses import LossScales
from learner.model import Policy, build_policy
from learner.settings import LossSettings
from protocol.segments import Segment
from tests.learner import tiny
from tests.learner.plain_loss import row_loss

SCALES = LossScales(ce=0.1, coord=0.25)


@pytest.fixture(scope="module")
def policy(checkpoint: Path) -> Policy:
    return build_policy(tiny.settings(checkpoint))


def run(policy: Policy, *batches: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    """Total loss and gradients after all batches."""
    policy.zero_grad()
    total = 0.0
    for batch in batches:
        output = policy(batch, SCALES)
        output.loss.backward()
        total += output.loss.item()
    return total, {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    scale = max(float(gradient.abs().max()) for gradient in one.values())
    for name, gradient in one.items():
        torch.testing.assert_close(
            gradient, other[name], rtol=1e-5, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_a_packed_row_equals_separate_forwards(policy: Policy, segments: list[Segment], vision: list[Vision]) -> None:
    packed = run(policy, collate_packed(segments, vision, policy.rope_index))
    alone = run(policy, *(collate_packed([s], [v], policy.rope_index) for s, v in zip(segments, vision, strict=True)))
    assert packed[0] == pytest.approx(alone[0], rel=1e-5)
    assert_same(packed[1], alone[1])


def test_padded_rows_equal_a_packed_row(policy: Policy, segments: list[Segment], vision: list[Vision]) -> None:
    packed = run(policy, collate_packed(segments, vision, policy.rope_index))
    padded = run(policy, collate_padded(segments, vision, policy.rope_index))
    assert packed[0] == pytest.approx(padded[0], rel=1e-5)
    assert_same(packed[1], padded[1])


def test_the_text_row_isolates_segments_in_any_other_attention(
    checkpoint: Path, policy: Policy, segments: list[Segment], vision: list[Vision]
) -> None:
    """Flash attention reads it too; with three rows of positions segments would see each other silently."""
    policy, ours = build_policy(tiny.settings(checkpoint, attn_impl="eager")), policy
    packed = collate_packed(segments, vision, policy.rope_index)
    leaky = replace(packed, position_ids=packed.position_ids[1:])
    torch.testing.assert_close(policy.hidden(packed), ours.hidden(packed), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(policy.hidden(packed), policy.hidden(leaky), atol=1e-3)


def test_the_chunked_head_equals_the_plain_computation(
    policy: Policy, segments: list[Segment], vision: list[Vision]
) -> None:
    batch = collate_packed(segments, vision, policy.rope_index)
    num_ce, num_coord = len(batch.ce_ids()), len(batch.coord_bins)
    policy.zero_grad()
    output = policy(batch, LossScales(1 / num_ce, 1 / num_coord))
    output.loss.backward()
    chunked = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    logits = policy.core.lm_head(policy.hidden(batch)[0])
    loss, sums = row_loss(
        logits,
        batch.labels[0],
        batch.coord_positions,
        batch.coord_bins,
        batch.coord_in_prefix,
        policy.head.coord_ids,
        LossSettings(target_truncate=16),
    )
    loss.backward()
    plain = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    assert output.loss.item() == pytest.approx(loss.item(), rel=1e-5)
    assert output.ce.sum().item() == pytest.approx(sums.ce_sum, rel=1e-5)
    assert output.coord.sum().item() == pytest.approx(sums.coord_sum, rel=1e-5)
    assert_same(plain, chunked)


def test_an_empty_forward_touches_every_parameter_and_moves_none(policy: Policy) -> None:
    loss, gradients = run(policy, collate_nothing(*policy.smallest_input(), policy.rope_index))
    assert loss == 0
    assert gradients.keys() == {name for name, p in policy.named_parameters() if p.requires_grad}
    assert all(not gradient.any() for gradient in gradients.values())
