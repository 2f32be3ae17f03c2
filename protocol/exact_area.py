"""Exact IoU of two polygons, for shapes too small for a raster (SPEC A6).

The plane is cut into horizontal slabs at every vertex and every crossing of two edges. Inside a slab no two edges
cross, so each shape is a set of trapezoids whose widths change linearly: the width at half height times the height is
the exact area. Inside is even-odd, as in the raster.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


def exact_iou(a: FloatArray, b: FloatArray) -> float:
    """Area IoU of two rings [n, 2] in any order of their vertices; 0 where both have no area."""
    edges_a, edges_b = _edges(a), _edges(b)
    heights = _heights(np.concatenate([edges_a, edges_b]))
    both = either = 0.0
    for low, high in pairwise(heights):
        middle = (low + high) / 2
        inside_a, inside_b = _intervals(edges_a, middle), _intervals(edges_b, middle)
        shared = _shared_width(inside_a, inside_b)
        both += shared * (high - low)
        either += (_width(inside_a) + _width(inside_b) - shared) * (high - low)
    return both / either if either > 0 else 0.0


def _edges(ring: FloatArray) -> FloatArray:
    """[n, 4] x1, y1, x2, y2 of the closed ring, without horizontal edges: they bound no slab."""
    edges = np.concatenate([ring, np.roll(ring, -1, axis=0)], axis=1)
    slanted: FloatArray = edges[edges[:, 1] != edges[:, 3]]
    return slanted


def _heights(edges: FloatArray) -> list[float]:
    """Ascending y of all vertices and of all proper crossings."""
    heights = set(edges[:, 1].tolist()) | set(edges[:, 3].tolist())
    for i, (x1, y1, x2, y2) in enumerate(edges.tolist()):
        for x3, y3, x4, y4 in edges[i + 1 :].tolist():
            determinant = (x2 - x1) * (y4 - y3) - (y2 - y1) * (x4 - x3)
            if determinant == 0:
                continue
            along = ((x3 - x1) * (y4 - y3) - (y3 - y1) * (x4 - x3)) / determinant
            if 0 < along < 1:
                heights.add(y1 + along * (y2 - y1))
    return sorted(heights)


def _intervals(edges: FloatArray, y: float) -> list[tuple[float, float]]:
    """Even-odd inside at height y, which is no vertex's height."""
    crossing = edges[(np.minimum(edges[:, 1], edges[:, 3]) < y) & (np.maximum(edges[:, 1], edges[:, 3]) > y)]
    x1, y1, x2, y2 = crossing.T
    xs = np.sort(x1 + (y - y1) / (y2 - y1) * (x2 - x1)).tolist()
    return list(zip(xs[0::2], xs[1::2], strict=True))


def _width(intervals: list[tuple[float, float]]) -> float:
    return sum(high - low for low, high in intervals)


def _shared_width(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> float:
    return sum(max(0.0, min(high_a, high_b) - max(low_a, low_b)) for low_a, high_a in a for low_b, high_b in b)
