"""Rings of vertices: canonical form, simplification and the questions an importer asks (SPEC A22).

A ring is a list of (x, y); the edge from the last vertex to the first is implied; y grows downwards.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import numpy as np

Point = tuple[float, float]
Ring = list[Point]


def twice_signed_area(ring: Sequence[Point]) -> float:
    """Shoelace sum; positive where the ring runs clockwise as it is seen (y downwards)."""
    following = [*ring[1:], *ring[:1]]
    return sum(x * next_y - next_x * y for (x, y), (next_x, next_y) in zip(ring, following, strict=True))


def without_repeats(ring: Sequence[Point]) -> Ring:
    """Drops vertices that equal the one before, the closing one included."""
    kept = [point for at, point in enumerate(ring) if at == 0 or point != ring[at - 1]]
    while len(kept) > 1 and kept[-1] == kept[0]:
        kept.pop()
    return kept


def canonical(ring: Sequence[Point]) -> Ring:
    """The same shape, clockwise, from its top-most, then left-most vertex; vertices are never sorted by angle.

    Among several such starts (a ring that touches itself there) the smallest sequence wins, so the form is unique.
    `canonical([(1, 1), (0, 1), (0, 0), (1, 0)])` → `[(0, 0), (1, 0), (1, 1), (0, 1)]`.
    """
    points = without_repeats(ring)
    if not points:
        return points
    if twice_signed_area(points) < 0:
        points.reverse()
    top = min((y, x) for x, y in points)
    starts = [at for at, (x, y) in enumerate(points) if (y, x) == top]
    return min(points[at:] + points[:at] for at in starts)


def simplify(ring: Sequence[Point], max_points: int) -> Ring:
    """At most `max_points` (>= 3) vertices: again and again the one is dropped that spans the smallest triangle with
    its neighbours (Visvalingam and Whyatt 1993). Ties drop the earlier vertex. O(n log n)."""
    if max_points < 3:
        raise ValueError(f"max_points must be >= 3, got {max_points}; a polygon has at least three vertices")
    points = without_repeats(ring)
    count = len(points)
    before = [(at - 1) % count for at in range(count)]
    after = [(at + 1) % count for at in range(count)]
    version = [0] * count
    heap = [(_triangle(points, before[at], at, after[at]), at, 0) for at in range(count)]
    heapq.heapify(heap)
    alive = count
    while alive > max_points:
        _, at, seen = heapq.heappop(heap)
        if version[at] != seen:
            continue  # a neighbour has gone since: a newer entry exists
        alive -= 1
        version[at] = -1
        left, right = before[at], after[at]
        after[left], before[right] = right, left
        for neighbour in (left, right):
            version[neighbour] += 1
            area = _triangle(points, before[neighbour], neighbour, after[neighbour])
            heapq.heappush(heap, (area, neighbour, version[neighbour]))
    return [point for at, point in enumerate(points) if version[at] >= 0]


def _triangle(points: Sequence[Point], a: int, b: int, c: int) -> float:
    (ax, ay), (bx, by), (cx, cy) = points[a], points[b], points[c]
    return abs((bx - ax) * (cy - ay) - (by - ay) * (cx - ax))


def crosses_itself(ring: Sequence[Point]) -> bool:
    """Two edges cut each other in their interiors; touching is no crossing. O(n²), meant for capped rings."""
    points = np.asarray(ring, dtype=np.float64).reshape(-1, 2)
    edges = np.roll(points, -1, axis=0) - points
    to_point = points[None, :, :] - points[:, None, :]
    side = np.sign(edges[:, None, 0] * to_point[:, :, 1] - edges[:, None, 1] * to_point[:, :, 0])  # [edge, point]
    splits = side * np.roll(side, -1, axis=1) < 0  # [edge, other]: the other's ends lie on both sides of the edge
    return bool((splits & splits.T).any())


def contains_point(ring: Sequence[Point], point: Point) -> bool:
    """Whether a point lies inside, by the even-odd rule; on the edge either answer is possible."""
    x, y = point
    inside = False
    for (ax, ay), (bx, by) in zip(ring, [*ring[1:], *ring[:1]], strict=True):
        if (ay > y) != (by > y) and x < (bx - ax) * (y - ay) / (by - ay) + ax:
            inside = not inside
    return inside


def bounds(ring: Sequence[Point]) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2."""
    xs, ys = [x for x, _ in ring], [y for _, y in ring]
    return min(xs), min(ys), max(xs), max(ys)
