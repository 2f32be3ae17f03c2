"""Which prediction answers which ground truth (SPEC 7), and which predictions repeat each other (A20)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.contracts import MatchedPair, MatchResult, Prediction, Shape
from protocol.desc import normalise_desc
from protocol.geometry import FloatArray, Int64Array, ShapeTable, overlap_ious, pair_ious

_FORBIDDEN = 1e6
"""Cost of a pair that may not match."""
_DUPLICATE_IOU, _DUPLICATE_RESOLUTION = 0.9, 256


@dataclass(frozen=True, slots=True)
class MatchSettings:
    """Knobs of the assignment; the defaults are the runbook's."""

    candidate_top_k: int = 10
    """Ground truths per prediction whose mask IoU is computed, nearest bounds first; at least 1."""
    maskiou_gate: float = 0.3
    """A candidate pair below this mask IoU is rejected; equal stays."""
    maskiou_resolution: int = 256
    """Side of the raster canvas; 0 or less makes every IoU 0."""
    fp_cost: float = 1.0
    fn_cost: float = 1.0
    """A pair is worth matching while 1 - IoU <= fp_cost + fn_cost."""


def match(predictions: Sequence[Shape], truths: Sequence[Shape], settings: MatchSettings) -> MatchResult:
    """The cheapest assignment. Deterministic; ties fall as scipy's solver takes them."""
    num_predictions, num_truths = len(predictions), len(truths)
    if not (num_predictions and num_truths):
        return MatchResult(
            pairs=(),
            false_negatives=tuple(range(num_truths)),
            false_positives=tuple(range(num_predictions)),
            gating_rejections=0,
        )
    rows, columns, ious = compare_candidates(predictions, truths, settings)
    allowed = ious >= settings.maskiou_gate
    costs = np.full((num_predictions, num_truths), _FORBIDDEN)
    costs[rows[allowed], columns[allowed]] = 1.0 - ious[allowed]
    pairs = _assign(costs, settings.fp_cost, settings.fn_cost)
    matched_predictions = {pair.prediction for pair in pairs}
    matched_truths = {pair.ground_truth for pair in pairs}
    return MatchResult(
        pairs=pairs,
        false_negatives=tuple(index for index in range(num_truths) if index not in matched_truths),
        false_positives=tuple(index for index in range(num_predictions) if index not in matched_predictions),
        gating_rejections=int(len(ious) - allowed.sum()),
    )


def compare_candidates(
    predictions: Sequence[Shape], truths: Sequence[Shape], settings: MatchSettings
) -> tuple[Int64Array, Int64Array, FloatArray]:
    """Prediction, truth and mask IoU of each pair that may match, row by row; [n] each."""
    left = ShapeTable.of(predictions, settings.maskiou_resolution)
    right = ShapeTable.of(truths, settings.maskiou_resolution)
    rows, columns = _candidates(left, right, max(1, settings.candidate_top_k))
    return rows, columns, pair_ious(left, right, rows, columns)


def _candidates(left: ShapeTable, right: ShapeTable, top_k: int) -> tuple[Int64Array, Int64Array]:
    """Rows and columns of the candidate pairs, row by row: the `top_k` truths with the best bounds IoU, ties by
    index; where no bounds overlap, the nearest centres."""
    num_rows, num_columns = len(left.shapes), len(right.shapes)
    if top_k >= num_columns:
        return np.repeat(np.arange(num_rows), num_columns), np.tile(np.arange(num_columns), num_rows)
    keys = -overlap_ious(left, right)
    lonely = np.flatnonzero(keys.min(axis=1) >= 0)
    if len(lonely):
        keys[lonely] = _centre_distances(left.bounds[lonely], right.bounds)
    chosen = _smallest(keys, top_k)
    rows, columns = np.nonzero(chosen)
    return rows, columns


def _centre_distances(a: Int64Array, b: Int64Array) -> FloatArray:
    """[len(a), len(b)] squared distance of the bounds' centres, in quarter bins squared: exact in integers."""
    centres_a, centres_b = a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:]
    distances: FloatArray = ((centres_a[:, None] - centres_b[None]) ** 2).sum(axis=2).astype(np.float64)
    return distances


def _smallest(keys: FloatArray, count: int) -> npt.NDArray[np.bool_]:
    """Marks the `count` smallest keys of each row; among equal keys the lower index wins."""
    threshold = np.partition(keys, count - 1, axis=1)[:, count - 1 : count]
    below = keys < threshold
    equal = keys == threshold
    room = count - below.sum(axis=1, keepdims=True)
    chosen: npt.NDArray[np.bool_] = below | (equal & (equal.cumsum(axis=1) <= room))
    return chosen


def _assign(costs: FloatArray, fp_cost: float, fn_cost: float) -> tuple[MatchedPair, ...]:
    """Solves the square problem of size P + G with a dummy per prediction and per truth (SPEC 7, step 5).

    A rectangular or a divided problem would be solved sooner and cost the same, but among equally cheap assignments,
    which crowded scenes have, it would choose others than the specified one.
    """
    from scipy.optimize import linear_sum_assignment

    num_predictions, num_truths = costs.shape
    size = num_predictions + num_truths
    square = np.zeros((size, size))
    square[:num_predictions, :num_truths] = costs
    square[:num_predictions, num_truths:] = fp_cost
    square[num_predictions:, :num_truths] = fn_cost
    _, assigned = linear_sum_assignment(square)
    pairs = []
    for prediction, truth in enumerate(assigned[:num_predictions].tolist()):
        if truth < num_truths and costs[prediction, truth] < _FORBIDDEN / 2:
            iou = min(1.0, max(0.0, 1.0 - float(costs[prediction, truth])))
            pairs.append(MatchedPair(prediction, truth, iou))
    return tuple(pairs)


def count_duplicates(predictions: Sequence[Prediction]) -> int:
    """Predictions that repeat an earlier one: same normalised desc and mask IoU >= 0.9 (A20)."""
    groups: dict[str, list[Shape]] = {}
    for prediction in predictions:
        groups.setdefault(normalise_desc(prediction.desc), []).append(prediction.shape)
    return sum(_count_repeats(shapes) for shapes in groups.values() if len(shapes) > 1)


def _count_repeats(shapes: Sequence[Shape]) -> int:
    # Equal shapes repeat each other even where they have no area, and so no IoU: a model that degenerates writes such.
    first: dict[Shape, int] = {}
    for at, shape in enumerate(shapes):
        first.setdefault(shape, at)
    table = ShapeTable.of(tuple(first), _DUPLICATE_RESOLUTION)
    later, earlier = np.tril_indices(len(first), -1)
    close = pair_ious(table, table, later, earlier) >= _DUPLICATE_IOU
    # The first of its kind repeats one of another kind that came before it; `first` is in order of appearance.
    return len(shapes) - len(first) + len(np.unique(later[close]))
