"""Exact IoU of two polygons, for shapes too small for a raster (SPEC A6).

The plane is cut into horizontal slabs at every vertex and every crossing of two edges. Inside a slab no two edges
cross, so each shape is a set of trapezoids whose widths change linearly: the width at half height times the height is
the exact area. Inside is even-odd, as in the raster.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

Point = tuple[float, float]
Edge = tuple[float, float, float, float]
"""x1, y1, x2, y2 with y1 < y2."""


def exact_iou(a: Sequence[Point], b: Sequence[Point]) -> float:
    """Area IoU of two closed rings; 0 where both have no area. Quadratic in the number of edges."""
    edges_a, edges_b = _edges(a), _edges(b)
    both = either = 0.0
    for low, high in pairwise(_heights(edges_a + edges_b)):
        middle = (low + high) / 2
        inside_a, inside_b = _intervals(edges_a, middle), _intervals(edges_b, middle)
        shared = _shared_width(inside_a, inside_b)
        both += shared * (high - low)
        either += (_width(inside_a) + _width(inside_b) - shared) * (high - low)
    return both / either if either > 0 else 0.0


def _edges(ring: Sequence[Point]) -> list[Edge]:
    """Upward edges of the closed ring that decide what is inside.

    Horizontal ones bound no slab, and those that come an even number of times change nothing in even-odd; without them
    a ring that goes round and round is as cheap as one that does not.
    """
    edges: Counter[Edge] = Counter()
    for (x1, y1), (x2, y2) in zip(ring, [*ring[1:], ring[0]], strict=True):
        if y1 != y2:
            edges[(x1, y1, x2, y2) if y1 < y2 else (x2, y2, x1, y1)] += 1
    return [edge for edge, count in edges.items() if count % 2]


def _heights(edges: Sequence[Edge]) -> list[float]:
    """Ascending y of all vertices and of all crossings."""
    heights = {y for _, y1, _, y2 in edges for y in (y1, y2)}
    for at, (x1, y1, x2, y2) in enumerate(edges):
        for x3, y3, x4, y4 in edges[at + 1 :]:
            determinant = (x2 - x1) * (y4 - y3) - (y2 - y1) * (x4 - x3)
            if determinant:
                along = ((x3 - x1) * (y4 - y3) - (y3 - y1) * (x4 - x3)) / determinant
                if 0 < along < 1:
                    heights.add(y1 + along * (y2 - y1))
    return sorted(heights)


def _intervals(edges: Sequence[Edge], y: float) -> list[tuple[float, float]]:
    """Even-odd inside at height y. Half-open edges keep the crossings even where rounding puts y on a vertex."""
    xs = sorted(x1 + (y - y1) / (y2 - y1) * (x2 - x1) for x1, y1, x2, y2 in edges if y1 <= y < y2)
    return list(zip(xs[0::2], xs[1::2], strict=True))


def _width(intervals: Sequence[tuple[float, float]]) -> float:
    return sum(high - low for low, high in intervals)


def _shared_width(a: Sequence[tuple[float, float]], b: Sequence[tuple[float, float]]) -> float:
    return sum(max(0.0, min(high_a, high_b) - max(low_a, low_b)) for low_a, high_a in a for low_b, high_b in b)
