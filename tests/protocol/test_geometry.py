"""Mask IoU: equal to pycocotools wherever it draws anything, exact where it does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from protocol.contracts import Shape
from protocol.exact_area import exact_iou
from protocol.geometry import ShapeTable, first_cells, mask_iou, overlap_ious, pair_ious, ring_points
from protocol.vocab import NUM_BINS
from tests.protocol.checks import check_iou, covered_cells
from tests.protocol.strategies import EXAMPLES, FEW_EXAMPLES, Dealer, drawn

RESOLUTIONS = (256, 64, 100, 7, 1, 1000, 512)


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_every_edge_of_a_box_falls_where_pycocotools_puts_it(resolution: int) -> None:
    """All 1,000 bins as a low and as a high edge, on both axes: columns and rows of a box are independent."""
    cells = first_cells(resolution)
    last = cells[NUM_BINS - 1]
    step = 1 if resolution <= 256 else 7
    for bin_ in range(0, NUM_BINS, step):
        right, below = Shape("bbox_2d", (bin_, 0, 999, 999)), Shape("bbox_2d", (0, bin_, 999, 999))
        left, above = Shape("bbox_2d", (0, 0, bin_, 999)), Shape("bbox_2d", (0, 0, 999, bin_))
        assert covered_cells(right, resolution) == covered_cells(below, resolution) == (last - cells[bin_]) * last
        assert covered_cells(left, resolution) == covered_cells(above, resolution) == cells[bin_] * last


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn(20))
def test_box_iou_is_pycocotools_own(raw: bytes) -> None:
    dealer = Dealer(raw)
    check_iou(dealer.box(), dealer.box(), dealer.one_of(RESOLUTIONS))


@settings(max_examples=EXAMPLES, deadline=None)
@given(drawn(50))
def test_polygon_iou_is_pycocotools_own(raw: bytes) -> None:
    dealer = Dealer(raw)
    check_iou(dealer.poly(), dealer.shape(), dealer.one_of(RESOLUTIONS))


@settings(max_examples=FEW_EXAMPLES, deadline=None)
@given(drawn(20))
def test_exact_iou_of_rectangles_is_the_ratio_of_their_areas(raw: bytes) -> None:
    dealer = Dealer(raw)
    a, b = dealer.box(), dealer.box()
    bounds = ShapeTable.of([a, b], 1).bounds.tolist()
    width, height = (max(0, min(bounds[0][k + 2], bounds[1][k + 2]) - max(bounds[0][k], bounds[1][k])) for k in (0, 1))
    union = sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in bounds) - width * height
    assert exact_iou(ring_points(a), ring_points(b)) == pytest.approx(width * height / union if union else 0.0)


def test_exact_iou_of_crossing_triangles_is_known() -> None:
    upright, slanted = [(0, 0), (4, 0), (0, 4)], [(0, 0), (4, 0), (4, 4)]
    assert exact_iou(upright, slanted) == pytest.approx(4 / 12)


def test_exact_iou_counts_a_self_crossing_ring_by_even_odd() -> None:
    bow = [(0, 0), (2, 2), (2, 0), (0, 2)]
    square = [(0, 0), (2, 0), (2, 2), (0, 2)]
    assert exact_iou(bow, square) == pytest.approx(0.5)


def test_a_ring_that_goes_round_an_even_number_of_times_has_no_area_and_round_an_odd_number_its_own() -> None:
    triangle, square = [(0, 0), (4, 0), (0, 4)], [(0, 0), (4, 0), (4, 4), (0, 4)]
    assert exact_iou(triangle * 1000, square) == 0
    assert exact_iou(triangle * 1001, square) == exact_iou(triangle, square) == 0.5


def test_identical_boxes_below_one_cell_match_fully() -> None:
    tiny = Shape("bbox_2d", (100, 100, 102, 102))
    assert covered_cells(tiny, 256) == 0
    assert mask_iou(tiny, tiny, 256) == 1.0
    assert mask_iou(tiny, Shape("bbox_2d", (101, 100, 103, 102)), 256) == pytest.approx(1 / 3)


def test_a_tiny_polygon_in_a_large_box_has_the_ratio_of_their_areas() -> None:
    tiny = Shape("poly", (100, 100, 102, 100, 100, 102))
    assert mask_iou(tiny, Shape("bbox_2d", (100, 100, 102, 102)), 256) == pytest.approx(0.5)


@pytest.mark.parametrize("resolution", [0, -1])
def test_without_a_canvas_every_iou_is_zero(resolution: int) -> None:
    box = Shape("bbox_2d", (0, 0, 500, 500))
    assert mask_iou(box, box, resolution) == 0.0


def test_a_ring_of_two_points_has_no_area() -> None:
    line, box = Shape("poly", (0, 0, 500, 500)), Shape("bbox_2d", (0, 0, 500, 500))
    assert mask_iou(line, box, 256) == mask_iou(line, line, 256) == 0.0


def test_many_pairs_at_once_give_what_each_pair_gives_alone() -> None:
    rng = np.random.default_rng(5)
    shapes = [
        Shape("bbox_2d" if at % 3 else "poly", tuple(int(v) for v in rng.integers(0, 300, 4 if at % 3 else 8)))
        for at in range(30)
    ]
    table = ShapeTable.of(shapes, 256)
    rows, columns = np.divmod(np.arange(900), 30)
    alone = [mask_iou(shapes[i], shapes[j], 256) for i, j in zip(rows, columns, strict=True)]
    assert pair_ious(table, table, rows, columns).tolist() == alone


def test_bounds_overlap_is_zero_for_shapes_that_only_touch() -> None:
    table = ShapeTable.of([Shape("bbox_2d", (0, 0, 10, 10)), Shape("bbox_2d", (10, 0, 20, 10))], 256)
    assert overlap_ious(table, table).tolist() == [[1.0, 0.0], [0.0, 1.0]]
