"""Mask IoU of shapes on the norm1000 grid (SPEC 7 and A6), for one pair and for many.

A shape is rasterised as pycocotools does it, on an R x R canvas. For a box that raster is known without drawing:
pycocotools samples the boundary five times per cell and gives a cell to the shape when its middle sample, number
5c + 2, lies in [low, high). So a box covers whole ranges of columns and rows, a range begins at `first_cells[bin]`,
and the IoU of two boxes is integer arithmetic. Polygons are drawn by pycocotools itself, once each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.contracts import Shape
from protocol.exact_area import exact_iou
from protocol.vocab import NUM_BINS

FloatArray = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
IntegerArray = npt.NDArray[np.integer[Any]]

_MIN_RING_VALUES = 6
_SAMPLES_PER_CELL = 5
_MIDDLE_SAMPLE = 2
_AREAS_AT_ONCE = 128
"""`pycocotools.mask.area` 2.0.11 counts its masks in eight bits, and fails for more than 255."""


def mask_iou(a: Shape, b: Shape, resolution: int) -> float:
    """Intersection over union of two rasterised shapes, in [0, 1]; the order of the two does not matter.

    Where a shape covers no cell at `resolution`, the exact area IoU instead (A6). 0 for `resolution <= 0` or a polygon
    of fewer than three points.
    """
    one = np.zeros(1, dtype=np.int64)
    return float(pair_ious(ShapeTable.of([a], resolution), ShapeTable.of([b], resolution), one, one)[0])


@dataclass(frozen=True, slots=True)
class ShapeTable:
    """Shapes as arrays: what candidate selection and box IoU need, computed once per shape."""

    shapes: tuple[Shape, ...]
    resolution: int
    bounds: Int64Array
    """[N, 4] x1, y1, x2, y2 in bins, sorted corners."""
    cells: Int64Array
    """[N, 4] the same in raster cells: a box covers columns [x1, x2) and rows [y1, y2)."""
    is_box: npt.NDArray[np.bool_]
    """[N]"""

    @classmethod
    def of(cls, shapes: Sequence[Shape], resolution: int) -> ShapeTable:
        """Coordinates are clamped to 0..999."""
        bounds = np.zeros((len(shapes), 4), dtype=np.int64)
        is_box = np.fromiter((shape.geometry == "bbox_2d" for shape in shapes), dtype=np.bool_, count=len(shapes))
        if is_box.all():
            corners = np.array([shape.bins for shape in shapes], dtype=np.int64).reshape(-1, 4)
            np.minimum(corners[:, :2], corners[:, 2:], out=bounds[:, :2])
            np.maximum(corners[:, :2], corners[:, 2:], out=bounds[:, 2:])
        else:
            for row, shape in zip(bounds, shapes, strict=True):
                xs, ys = shape.bins[0::2], shape.bins[1::2]
                if shape.geometry == "bbox_2d" or len(shape.bins) >= _MIN_RING_VALUES:
                    row[:] = (min(xs), min(ys), max(xs), max(ys))  # else empty bounds: no area, IoU 0
        bounds.clip(0, NUM_BINS - 1, out=bounds)
        cells = first_cells(resolution)[bounds] if resolution > 0 else np.zeros_like(bounds)
        return cls(tuple(shapes), resolution, bounds, cells, is_box)


@lru_cache(maxsize=16)
def first_cells(resolution: int) -> Int64Array:
    """[1000] for each bin, the first raster cell whose middle sample lies at or behind it."""
    samples: Int64Array = np.floor(_SAMPLES_PER_CELL * (np.arange(NUM_BINS) * (resolution / NUM_BINS)) + 0.5).astype(
        np.int64
    )
    cells: Int64Array = -((_MIDDLE_SAMPLE - samples) // _SAMPLES_PER_CELL)
    clipped: Int64Array = cells.clip(0, resolution)
    return clipped


def overlap_ious(a: ShapeTable, b: ShapeTable) -> FloatArray:
    """[len(a), len(b)] IoU of the axis-aligned bounds in bins; 0 where they share no area."""
    left, right = a.bounds.astype(np.int32), b.bounds.astype(np.int32)
    shared = _shared_sides(left[:, 0::2], right[:, 0::2])
    shared *= _shared_sides(left[:, 1::2], right[:, 1::2])
    whole = _areas(left)[:, None] + _areas(right)[None, :]
    whole -= shared
    return _ratio(shared, whole)


def _shared_sides(a: IntegerArray, b: IntegerArray) -> IntegerArray:
    """[len(a), len(b)] common length of the intervals a [n, 2] and b [m, 2]."""
    shared: IntegerArray = np.minimum(a[:, 1:], b[:, 1])
    shared -= np.maximum(a[:, :1], b[:, 0])
    shared[shared < 0] = 0
    return shared


def pair_ious(a: ShapeTable, b: ShapeTable, rows: Int64Array, columns: Int64Array) -> FloatArray:
    """[M] mask IoU of the pairs `a[rows[i]], b[columns[i]]`."""
    assert a.resolution == b.resolution, f"tables of resolutions {a.resolution} and {b.resolution}"
    if a.resolution <= 0:
        return np.zeros(len(rows))
    ious = _box_ious(a.cells[rows], b.cells[columns])
    areas_a, areas_b = _areas(a.cells), _areas(b.cells)
    tiny = (areas_a[rows] == 0) | (areas_b[columns] == 0)
    if tiny.any():
        ious[tiny] = _box_ious(a.bounds[rows[tiny]], b.bounds[columns[tiny]])
    if not (a.is_box.all() and b.is_box.all()):
        drawn = ~(a.is_box[rows] & b.is_box[columns])
        ious[drawn] = _drawn_ious(a, b, rows[drawn], columns[drawn])
    return ious


def _areas(corners: IntegerArray) -> IntegerArray:
    areas: IntegerArray = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
    return areas


def _box_ious(a: Int64Array, b: Int64Array) -> FloatArray:
    sides = np.maximum(np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2]), 0)
    shared = sides[:, 0] * sides[:, 1]
    return _ratio(shared, _areas(a) + _areas(b) - shared)


def _ratio(part: IntegerArray, whole: IntegerArray) -> FloatArray:
    """part / whole, 0 where whole is 0 (then part is 0 too)."""
    ratio: FloatArray = part / np.maximum(whole, 1)
    return ratio


def _drawn_ious(a: ShapeTable, b: ShapeTable, rows: Int64Array, columns: Int64Array) -> FloatArray:
    """Pairs with a polygon. Shapes whose bounds share no area have no cell in common: they are not drawn."""
    from pycocotools import mask

    left, right = a.bounds[rows], b.bounds[columns]
    sides = np.minimum(left[:, 2:], right[:, 2:]) - np.maximum(left[:, :2], right[:, :2])
    ious = np.zeros(len(rows))
    touching = np.flatnonzero((sides > 0).all(axis=1))
    rasters_a, rasters_b = _draw(a, rows[touching]), _draw(b, columns[touching])
    order = touching[np.argsort(rows[touching], kind="stable")]
    for group in np.split(order, np.flatnonzero(np.diff(rows[order])) + 1) if len(order) else []:
        row = int(rows[group[0]])
        others = columns[group].tolist()
        ious[group] = mask.iou([rasters_a[row].rle], [rasters_b[c].rle for c in others], [0] * len(others))[0]
        for at, column in zip(group, others, strict=True):
            if rasters_a[row].empty or rasters_b[column].empty:
                ious[at] = _exact_iou(a.shapes[row], b.shapes[column])
    return ious


@lru_cache(maxsize=1 << 14)
def _exact_iou(a: Shape, b: Shape) -> float:
    """Remembered: a model that degenerates repeats its shapes."""
    return exact_iou(ring_points(a), ring_points(b))


@dataclass(frozen=True, slots=True)
class _Raster:
    rle: Any
    """pycocotools' compressed run lengths."""
    empty: bool


def _draw(table: ShapeTable, wanted: Int64Array) -> dict[int, _Raster]:
    from pycocotools import mask

    indices = np.unique(wanted).tolist()
    if not indices:
        return {}
    size = table.resolution
    rings = [(ring(table.shapes[index]) * (size / NUM_BINS)).ravel().tolist() for index in indices]
    drawn = mask.frPyObjects(rings, size, size)
    parts = [drawn[at : at + _AREAS_AT_ONCE] for at in range(0, len(drawn), _AREAS_AT_ONCE)]
    areas = np.concatenate([mask.area(part) for part in parts]).tolist()
    return {index: _Raster(rle, area == 0) for index, rle, area in zip(indices, drawn, areas, strict=True)}


def ring(shape: Shape) -> FloatArray:
    """[n, 2] vertices clamped to 0..999; a box gives its four corners (x1,y1), (x2,y1), (x2,y2), (x1,y2), sorted."""
    points = np.clip(np.asarray(shape.bins, dtype=np.float64), 0, NUM_BINS - 1).reshape(-1, 2)
    if shape.geometry == "poly":
        return points
    (x1, y1), (x2, y2) = points.min(axis=0), points.max(axis=0)
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2]])


def ring_points(shape: Shape) -> list[tuple[float, float]]:
    """`ring` as plain pairs."""
    return [(x, y) for x, y in ring(shape).tolist()]
