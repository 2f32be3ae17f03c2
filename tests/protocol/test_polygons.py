"""Rings: the canonical form keeps the shape, simplification keeps the cap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.polygons import (
    canonical,
    contains_point,
    crosses_itself,
    simplify,
    twice_signed_area,
    without_repeats,
)

POINTS = st.tuples(st.integers(0, 30), st.integers(0, 30))
RINGS = st.lists(POINTS, min_size=3, max_size=14)
CONCAVE = [(0, 0), (10, 0), (10, 10), (5, 3), (0, 10)]
"""An arrow head: sorting it by angle around its mean would change its shape."""


def edges(ring: list[tuple[float, float]]) -> set[frozenset[tuple[float, float]]]:
    return {frozenset(edge) for edge in zip(ring, [*ring[1:], *ring[:1]], strict=True)}


@given(RINGS)
def test_the_canonical_form_keeps_vertices_edges_and_area(ring: list[tuple[float, float]]) -> None:
    form = canonical(ring)
    assert sorted(form) == sorted(without_repeats(ring))
    assert edges(form) == edges(without_repeats(ring))
    assert twice_signed_area(form) == abs(twice_signed_area(ring))


@given(RINGS, st.integers(0, 13), st.booleans())
def test_the_canonical_form_is_unique(ring: list[tuple[float, float]], turn: int, reverse: bool) -> None:
    turned = ring[turn % len(ring) :] + ring[: turn % len(ring)]
    other = turned[::-1] if reverse else turned
    if twice_signed_area(ring) != 0:  # without area there is no direction to agree on
        assert canonical(other) == canonical(ring)
    assert canonical(canonical(ring)) == canonical(ring)


@given(RINGS)
def test_the_canonical_form_starts_at_the_top_then_left(ring: list[tuple[float, float]]) -> None:
    x, y = canonical(ring)[0]
    assert (y, x) == min((y, x) for x, y in ring)


def test_a_concave_ring_keeps_its_notch() -> None:
    assert canonical(CONCAVE[::-1]) == CONCAVE


def test_a_closing_vertex_is_dropped() -> None:
    assert canonical([(0, 0), (1, 0), (1, 1), (0, 0)]) == [(0, 0), (1, 0), (1, 1)]


@given(RINGS, st.integers(3, 14))
def test_a_simplified_ring_holds_at_most_the_cap_in_the_old_order(ring: list[tuple[float, float]], cap: int) -> None:
    kept = without_repeats(ring)
    found = simplify(ring, cap)
    assert len(found) == min(cap, len(kept))
    rest = iter(kept)
    assert all(point in rest for point in found)  # a subsequence


def test_simplification_drops_what_says_least() -> None:
    square = [(0, 0), (5, 0), (10, 0), (10, 10), (5, 11), (0, 10)]
    assert simplify(square, 5) == [(0, 0), (10, 0), (10, 10), (5, 11), (0, 10)]
    assert simplify(square, 4) == [(0, 0), (10, 0), (10, 10), (0, 10)]
    with pytest.raises(ValueError, match="max_points must be >= 3"):
        simplify(square, 2)


def test_a_bow_tie_crosses_itself_and_a_notch_does_not() -> None:
    assert crosses_itself([(0, 0), (10, 10), (10, 0), (0, 10)])
    assert not crosses_itself(CONCAVE)


def test_a_point_is_inside_by_the_even_odd_rule() -> None:
    assert contains_point(CONCAVE, (2, 2))
    assert not contains_point(CONCAVE, (5, 8))
    assert not contains_point(CONCAVE, (11, 2))
