"""Matching: the specification's candidates, gate and assignment, and its invariants."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from protocol.contracts import Prediction, Shape
from protocol.geometry import mask_iou
from protocol.matching import MatchSettings, compare_candidates, count_duplicates, match
from tests.protocol.checks import check_match, check_more_predictions, check_truth_order
from tests.protocol.strategies import EXAMPLES, MatchCase, drawn, match_case


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn(90).map(match_case))
def test_any_sets_match_as_the_specification_says(case: MatchCase) -> None:
    check_match(case.predictions, case.truths, case.settings)


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn(90).map(match_case))
def test_the_order_of_the_ground_truth_does_not_matter_up_to_ties(case: MatchCase) -> None:
    check_truth_order(case.predictions, case.truths, case.order, case.settings)


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn(90).map(match_case))
def test_one_prediction_more_never_lowers_the_value(case: MatchCase) -> None:
    check_more_predictions(case.predictions, case.extra, case.truths, case.settings)


def box(*values: int) -> Shape:
    return Shape("bbox_2d", values)


def test_nothing_predicted_leaves_every_truth_missing() -> None:
    result = match([], [box(0, 0, 9, 9)] * 2, MatchSettings())
    assert (result.pairs, result.false_negatives, result.false_positives) == ((), (0, 1), ())


def test_without_truths_every_prediction_is_spurious() -> None:
    result = match([box(0, 0, 9, 9)], [], MatchSettings())
    assert (result.pairs, result.false_negatives, result.false_positives) == ((), (), (0,))


@pytest.mark.parametrize("counts", [(0, 0), (0, 3), (3, 0)])
def test_where_one_side_is_empty_nothing_is_compared(counts: tuple[int, int]) -> None:
    left, right = ([box(0, 0, 9, 9)] * count for count in counts)
    compared = compare_candidates(left, right, MatchSettings(candidate_top_k=2))
    assert [each.tolist() for each in compared] == [[], [], []]


def test_a_prediction_far_from_everything_is_compared_with_the_nearest_centres() -> None:
    truths = [box(900, 900, 950, 950), box(100, 100, 150, 150), box(200, 200, 250, 250)]
    result = match([box(0, 0, 50, 50)], truths, MatchSettings(candidate_top_k=2, maskiou_gate=0.0))
    assert [(pair.prediction, pair.ground_truth) for pair in result.pairs] == [(0, 1)]


@pytest.mark.parametrize(
    ("nearest", "other"),
    [
        (box(560, 560, 600, 600), box(0, 0, 300, 300)),  # on the other side of it
        (box(400, 400, 420, 420), box(530, 530, 990, 990)),  # a near corner, but the centre is far
        (box(580, 580, 600, 600), box(10, 10, 470, 470)),
        (box(560, 300, 700, 900), box(100, 100, 140, 140)),  # of another size
    ],
)
def test_the_nearest_centre_is_that_of_the_whole_bounds(nearest: Shape, other: Shape) -> None:
    for truths in ([nearest, other], [other, nearest]):
        _, columns, _ = compare_candidates([box(480, 480, 520, 520)], truths, MatchSettings(candidate_top_k=1))
        assert columns.tolist() == [truths.index(nearest)]


def test_the_worked_example_of_a_crowded_set_holds() -> None:
    predictions = [box(100, 100, 300, 300), box(120, 120, 320, 320), box(600, 600, 700, 700), box(0, 0, 999, 999)]
    truths = [box(110, 110, 310, 310), box(590, 590, 710, 710), box(130, 120, 330, 320)]
    result = match(predictions, truths, MatchSettings(candidate_top_k=5, fp_cost=0.5, fn_cost=2))
    assert [pair[:2] for pair in result.pairs] == [(0, 0), (1, 2), (2, 1)]
    assert (result.false_positives, result.gating_rejections) == ((3,), 7)
    assert sum(pair.mask_iou for pair in result.pairs) == pytest.approx(2.43209, abs=1e-5)


def prediction(desc: str, shape: Shape) -> Prediction:
    return Prediction(key="object_1", index=1, desc=desc, shape=shape, coord_positions=(), token_span=(0, 1))


def test_a_repeated_prediction_is_a_duplicate_of_the_earlier_one() -> None:
    a, near, other = box(100, 100, 300, 300), box(101, 100, 301, 300), box(500, 500, 700, 700)
    predictions = [prediction("Cat", a), prediction("cat", near), prediction("cat", a), prediction("cat", other)]
    assert count_duplicates(predictions) == 2


def many_triangles(count: int) -> list[Shape]:
    return [Shape("poly", (100 + at, 100, 400 + at, 100, 250, 400)) for at in range(count)]


def test_hundreds_of_polygons_on_either_side_are_matched() -> None:
    everything = box(0, 0, 999, 999)
    assert match(many_triangles(300), [everything], MatchSettings(maskiou_gate=0.0)).gating_rejections == 0
    matched = match([everything], many_triangles(300), MatchSettings(candidate_top_k=300, maskiou_gate=0.0))
    assert len(matched.pairs) == 1


@pytest.mark.parametrize("shapes", [many_triangles(300), many_triangles(2) * 150], ids=["all different", "two kinds"])
def test_hundreds_of_polygons_are_compared_with_each_other(shapes: list[Shape]) -> None:
    shuffled = [*shapes[7:], *shapes[:7]]
    assert count_duplicates([prediction("cat", shape) for shape in shuffled]) == 299


def test_equal_shapes_without_area_are_duplicates() -> None:
    assert count_duplicates([prediction("cat", box(0, 0, 0, 0)) for _ in range(5)]) == 4


def test_equal_shapes_with_different_descs_are_no_duplicates() -> None:
    assert count_duplicates([prediction(desc, box(1, 1, 500, 500)) for desc in ("cat", "dog")]) == 0


def test_a_mask_iou_of_exactly_nine_tenths_is_a_duplicate() -> None:
    wide, narrow, narrower = box(0, 0, 40, 500), box(0, 0, 36, 500), box(0, 0, 33, 500)
    assert mask_iou(wide, narrow, 256) == 0.9
    assert count_duplicates([prediction("cat", wide), prediction("cat", narrow)]) == 1
    assert count_duplicates([prediction("cat", wide), prediction("cat", narrower)]) == 0
