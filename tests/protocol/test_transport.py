"""Targets of matched slots: true bins for boxes, transported vertices otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from protocol.contracts import Shape
from protocol.transport import TransportSettings, project, sinkhorn_plan, slot_bins
from tests.protocol.strategies import FEW_EXAMPLES, Dealer, drawn

DEFAULT = TransportSettings()
SQUARE = Shape("poly", (100, 100, 200, 100, 200, 200, 100, 200))


@settings(max_examples=FEW_EXAMPLES, deadline=None)
@given(drawn(50))
def test_any_pair_gives_one_bin_in_range_per_predicted_slot(raw: bytes) -> None:
    dealer = Dealer(raw)
    prediction, truth = dealer.shape(), dealer.shape()
    chosen = TransportSettings(dealer.one_of(("l1", "l2")), dealer.one_of((1.0, 10.0, 1e4)), 1 + dealer.number(3))
    bins = slot_bins(prediction, truth, chosen)
    assert len(bins) == len(prediction.bins)
    assert all(0 <= bin_ <= 999 for bin_ in bins)
    for axis in (0, 1):
        low, high = min(truth.bins[axis::2]), max(truth.bins[axis::2])
        assert all(low <= bin_ <= high for bin_ in bins[axis::2])


def test_two_boxes_take_the_true_values_in_their_order() -> None:
    swapped = Shape("bbox_2d", (33, 41, 12, 18))
    assert slot_bins(Shape("bbox_2d", (10, 20, 30, 40)), swapped, DEFAULT) == swapped.bins


def test_a_shifted_square_learns_the_square() -> None:
    shifted = Shape("poly", (120, 110, 220, 110, 220, 210, 120, 210))
    assert slot_bins(SQUARE, shifted, DEFAULT) == shifted.bins


def test_a_box_learns_the_bounds_of_its_projected_corners() -> None:
    triangle = Shape("poly", (100, 100, 300, 100, 200, 300))
    assert slot_bins(Shape("bbox_2d", (100, 100, 300, 300)), triangle, DEFAULT) == (100, 100, 300, 233)


def test_a_very_large_epsilon_collapses_to_the_centroid() -> None:
    shifted = Shape("poly", (120, 110, 220, 110, 220, 210, 120, 210))
    assert set(slot_bins(SQUARE, shifted, TransportSettings(epsilon=1e4))) == {170, 160}


@pytest.mark.parametrize("epsilon", [0.0, -1.0, float("nan"), float("inf")])
def test_an_unusable_epsilon_means_one(epsilon: float) -> None:
    costs = np.array([[0.0, 3.0], [1.0, 0.5]], dtype=np.float32)
    expected = sinkhorn_plan(costs, TransportSettings(epsilon=1.0))
    assert sinkhorn_plan(costs, TransportSettings(epsilon=epsilon)).tolist() == expected.tolist()


def test_the_plan_has_uniform_columns_after_every_round() -> None:
    costs = np.random.default_rng(1).uniform(0, 50, (5, 3)).astype(np.float32)
    for iterations in (0, 1, 7):
        plan = sinkhorn_plan(costs, TransportSettings(iterations=iterations))
        assert plan.sum(axis=0) == pytest.approx([1 / 3] * 3, rel=1e-5)


def test_one_round_on_two_points_is_the_softmax_of_their_distance() -> None:
    points = np.array([[0.0, 0.0], [10.0, 0.0]], dtype=np.float32)
    image = project(points, points, TransportSettings("l2", 10.0, 1))
    assert image[:, 0].tolist() == pytest.approx([2.689414, 7.310586], rel=1e-6)
