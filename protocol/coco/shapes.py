"""One COCO annotation → one shape on the grid, or the rule that dropped it; and which other rules applied."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from protocol.coco.rle import decode_rle
from protocol.coco.rules import Rule
from protocol.contracts import Shape
from protocol.norm1000 import to_bin, to_bins
from protocol.polygons import (
    Ring,
    bounds,
    canonical,
    contains_point,
    crosses_itself,
    simplify,
    twice_signed_area,
    without_repeats,
)

Note = Callable[[Rule], None]
Box = tuple[float, float, float, float]
_LARGEST = sys.float_info.max


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapeOptions:
    """Which shapes are made of annotations."""

    geometry: Literal["bbox", "poly", "auto"] = "bbox"
    """`bbox`: boxes only; `poly`: a polygon wherever one ring can say the shape; `auto`: a polygon where it says more
    than its box."""
    max_points: int = 20
    """Most vertices of a polygon."""
    main_part: float = 0.9
    """Share of the area that the largest of several parts must hold to stand for the object."""
    box_fill: float = 0.9
    """`auto`: share of the box from which the box is taken."""
    min_side: float = 0.0
    """Shortest side of a box, in pixels."""
    crowds: Literal["drop", "box"] = "drop"


class Dropped(Exception):
    """Carries the rule out of the nested steps of one annotation; never leaves this module."""

    def __init__(self, rule: Rule) -> None:
        super().__init__(rule)
        self.rule = rule


def annotation_shape(
    annotation: Mapping[str, Any], width: float, height: float, options: ShapeOptions
) -> tuple[Shape | None, list[Rule]]:
    """The annotation on the norm1000 grid with the rules that applied; (None, [rule]) where one dropped it.

    Sides in pixels.
    """
    notes: list[Rule] = []
    try:
        if annotation.get("iscrowd") and options.crowds == "drop":
            raise Dropped(Rule.CROWD)
        box = _clipped_box(annotation, width, height, options, notes.append)
        bins = to_bins(box, width, height)
        if bins[0] == bins[2] or bins[1] == bins[3]:
            raise Dropped(Rule.BOX_FLAT_ON_GRID)
    except Dropped as dropped:
        return None, [dropped.rule]
    if box[2] >= width or box[3] >= height:
        notes.append(Rule.BOX_AT_BORDER)
    ring = None if options.geometry == "bbox" else _ring(annotation, width, height, options, notes.append)
    return (Shape("bbox_2d", bins) if ring is None else Shape("poly", ring)), notes


def _clipped_box(annotation: Mapping[str, Any], width: float, height: float, options: ShapeOptions, note: Note) -> Box:
    x1, y1, x2, y2 = _given_box(annotation)
    if x1 == x2 or y1 == y2:
        raise Dropped(Rule.BOX_DEGENERATE)
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        raise Dropped(Rule.BOX_OUTSIDE)
    box = max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))
    if box != (x1, y1, x2, y2):
        note(Rule.BOX_CLIPPED)
    if min(box[2] - box[0], box[3] - box[1]) < options.min_side:
        raise Dropped(Rule.BOX_TOO_SMALL)
    return box


def _given_box(annotation: Mapping[str, Any]) -> Box:
    """x1, y1, x2, y2 from COCO's x, y, width, height; from the polygons where there is no bbox."""
    given = annotation.get("bbox")
    if given is None:
        parts = _parts(annotation.get("segmentation"))
        if parts:
            return bounds([point for part in parts for point in part])
    if not isinstance(given, list | tuple | array) or len(given) != 4 or not all(map(_is_number, given)):
        raise Dropped(Rule.BOX_MALFORMED)
    x, y, wide, high = map(float, given)
    if wide < 0 or high < 0:
        raise Dropped(Rule.BOX_MALFORMED)
    return x, y, x + wide, y + high


def _is_number(value: object) -> bool:
    """One that float64 can hold: an integer may be too large for it."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST


def _parts(segmentation: object) -> list[Ring] | None:
    """The rings of a polygon segmentation; None where a part is malformed, [] where there is none."""
    if not isinstance(segmentation, list):
        return []
    rings: list[Ring] = []
    for part in segmentation:
        if not isinstance(part, list | array) or len(part) < 6 or len(part) % 2 or not all(map(_is_number, part)):
            return None
        rings.append([(float(part[at]), float(part[at + 1])) for at in range(0, len(part), 2)])
    return rings


def _ring(
    annotation: Mapping[str, Any], width: float, height: float, options: ShapeOptions, note: Note
) -> tuple[int, ...] | None:
    """Flat bins of the canonical ring; None where the box has to stand for the object, with the rule noted."""
    part = _single_part(annotation, options, note)
    if part is None:
        return None
    inside = [(min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))) for x, y in part]
    on_grid = [(to_bin(x, width), to_bin(y, height)) for x, y in inside]
    capped = simplify(on_grid, options.max_points)
    ring = canonical(capped)
    if len(ring) < 3 or twice_signed_area(ring) == 0:
        note(Rule.POLY_FLAT_ON_GRID)
        return None
    if crosses_itself(ring):
        note(Rule.POLY_CROSSES_ITSELF)
        return None
    if options.geometry == "auto" and _fill(ring) >= options.box_fill:
        note(Rule.POLY_FILLS_BOX)
        return None
    if inside != part:
        note(Rule.POLY_CLAMPED)
    if len(capped) < len(without_repeats(on_grid)):
        note(Rule.POLY_SIMPLIFIED)
    return tuple(int(value) for point in ring for value in point)


def _fill(ring: Ring) -> float:
    """Share of its own box that a ring of positive area covers."""
    x1, y1, x2, y2 = bounds(ring)
    return abs(twice_signed_area(ring)) / 2 / ((x2 - x1) * (y2 - y1))


def _single_part(annotation: Mapping[str, Any], options: ShapeOptions, note: Note) -> Ring | None:
    segmentation = annotation.get("segmentation")
    if isinstance(segmentation, Mapping):
        note(_mask_rule(segmentation))
        return None
    parts = _parts(segmentation)
    if not parts:
        note(Rule.POLY_MISSING if parts is not None else Rule.POLY_MALFORMED)
        return None
    if len(parts) == 1:
        return parts[0]
    if _nested(parts):
        note(Rule.POLY_HOLE)
        return None
    areas = [abs(twice_signed_area(part)) for part in parts]
    if max(areas) < options.main_part * sum(areas) or max(areas) == 0:
        note(Rule.POLY_PARTS)
        return None
    note(Rule.POLY_LARGEST_PART)
    return parts[areas.index(max(areas))]


def _nested(parts: Sequence[Ring]) -> bool:
    """Some part lies with all its vertices inside another one."""
    boxes = [bounds(part) for part in parts]
    return any(
        i != j and _within(boxes[i], boxes[j]) and all(contains_point(parts[j], point) for point in parts[i])
        for i in range(len(parts))
        for j in range(len(parts))
    )


def _within(inner: Box, outer: Box) -> bool:
    return inner[0] >= outer[0] and inner[1] >= outer[1] and inner[2] <= outer[2] and inner[3] <= outer[3]


def _mask_rule(segmentation: Mapping[str, Any]) -> Rule:
    """Which rule a run-length mask falls under: with holes, without, or no mask at all."""
    from scipy.ndimage import binary_fill_holes

    try:
        mask = decode_rle(segmentation)
    except ValueError:
        return Rule.POLY_MALFORMED
    return Rule.POLY_RLE_WITH_HOLES if (binary_fill_holes(mask) != mask).any() else Rule.POLY_RLE
