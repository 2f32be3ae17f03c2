"""What the COCO importer does with everything that is not a plain box: each rule has a name, and is counted by it."""

from __future__ import annotations

from enum import StrEnum


class Effect(StrEnum):
    """What a rule does to what it meets."""

    OBJECT_DROPPED = "object dropped"
    IMAGE_DROPPED = "image dropped"
    BOX_INSTEAD = "box instead of polygon"
    CHANGED = "kept, changed"
    NOTED = "kept, noted"


class Rule(StrEnum):
    """Names of the rules, as the summary counts them."""

    UNKNOWN_IMAGE = "unknown_image"
    UNKNOWN_CATEGORY = "unknown_category"
    CROWD = "crowd"
    BOX_MALFORMED = "box_malformed"
    BOX_OUTSIDE = "box_outside"
    BOX_DEGENERATE = "box_degenerate"
    BOX_TOO_SMALL = "box_too_small"
    BOX_FLAT_ON_GRID = "box_flat_on_grid"
    DUPLICATE = "duplicate"
    BOX_CLIPPED = "box_clipped"
    BOX_AT_BORDER = "box_at_border"
    POLY_MISSING = "poly_missing"
    POLY_MALFORMED = "poly_malformed"
    POLY_RLE = "poly_rle"
    POLY_RLE_WITH_HOLES = "poly_rle_with_holes"
    POLY_HOLE = "poly_hole"
    POLY_PARTS = "poly_parts"
    POLY_FLAT_ON_GRID = "poly_flat_on_grid"
    POLY_CROSSES_ITSELF = "poly_crosses_itself"
    POLY_FILLS_BOX = "poly_fills_box"
    POLY_LARGEST_PART = "poly_largest_part"
    POLY_CLAMPED = "poly_clamped"
    POLY_SIMPLIFIED = "poly_simplified"
    IMAGE_MISSING = "image_missing"
    IMAGE_DEEP = "image_deep"
    IMAGE_TWICE = "image_twice"
    IMAGE_NAME = "image_name"
    IMAGE_SIZE = "image_size"
    IMAGE_OTHER_SIZE = "image_other_size"
    IMAGE_TOO_MANY_OBJECTS = "image_too_many_objects"
    IMAGE_MONOTONOUS = "image_monotonous"
    IMAGE_EMPTIED = "image_emptied"
    IMAGE_EMPTY = "image_empty"
    IMAGE_NEEDS_RESIZE = "image_needs_resize"
    IMAGE_NOT_EXHAUSTIVE = "image_not_exhaustive"
    IN_DROPPED_IMAGE = "in_dropped_image"

    @property
    def effect(self) -> Effect:
        """What the rule does."""
        return RULES[self][0]

    @property
    def text(self) -> str:
        """The rule in a sentence."""
        return RULES[self][1]


_OBJECT, _IMAGE, _BOX = Effect.OBJECT_DROPPED, Effect.IMAGE_DROPPED, Effect.BOX_INSTEAD

RULES: dict[Rule, tuple[Effect, str]] = {
    Rule.UNKNOWN_IMAGE: (_OBJECT, "its image_id is in no entry of `images`"),
    Rule.UNKNOWN_CATEGORY: (_OBJECT, "its category_id is in no entry of `categories`"),
    Rule.CROWD: (_OBJECT, "iscrowd: one mark for many objects (kept as a box with --crowds box)"),
    Rule.BOX_MALFORMED: (
        _OBJECT,
        "bbox is not four finite numbers with a size >= 0, or is missing where no polygon has it",
    ),
    Rule.BOX_OUTSIDE: (_OBJECT, "lies outside the image as a whole"),
    Rule.BOX_DEGENERATE: (_OBJECT, "has no width or no height, as given or after clipping"),
    Rule.BOX_TOO_SMALL: (_OBJECT, "a side is shorter than --min-side pixels"),
    Rule.BOX_FLAT_ON_GRID: (_OBJECT, "both ends of a side fall into one bin"),
    Rule.DUPLICATE: (_OBJECT, "another object of the image has the same description and the same bins"),
    Rule.IN_DROPPED_IMAGE: (_OBJECT, "its image was dropped"),
    Rule.BOX_CLIPPED: (Effect.CHANGED, "reached over the image's border and was cut there"),
    Rule.BOX_AT_BORDER: (Effect.NOTED, "ends on the right or lower border: bin 1000 becomes 999"),
    Rule.POLY_MISSING: (_BOX, "has no segmentation"),
    Rule.POLY_MALFORMED: (
        _BOX,
        "a part has an odd number of values, < 3 vertices or no finite numbers, or runs do not fill the mask",
    ),
    Rule.POLY_RLE: (_BOX, "is a run-length mask, not a polygon"),
    Rule.POLY_RLE_WITH_HOLES: (_BOX, "is a run-length mask with holes"),
    Rule.POLY_HOLE: (_BOX, "one part lies inside another: a hole, which a single ring cannot say"),
    Rule.POLY_PARTS: (_BOX, "has several parts and none holds --main-part of the area"),
    Rule.POLY_FLAT_ON_GRID: (_BOX, "covers no area on the grid"),
    Rule.POLY_CROSSES_ITSELF: (_BOX, "its ring crosses itself on the grid"),
    Rule.POLY_FILLS_BOX: (_BOX, "auto: fills at least --box-fill of its box, so four values say the same"),
    Rule.POLY_LARGEST_PART: (
        Effect.CHANGED,
        "has several parts; the largest, with at least --main-part of the area, stays",
    ),
    Rule.POLY_CLAMPED: (Effect.CHANGED, "vertices outside the image were moved to its border"),
    Rule.POLY_SIMPLIFIED: (Effect.CHANGED, "has more than --max-points vertices on the grid and was simplified"),
    Rule.IMAGE_MISSING: (_IMAGE, "the file is not there or cannot be read"),
    Rule.IMAGE_DEEP: (_IMAGE, "grey with more than 8 bits, which are not clipped here: convert the file"),
    Rule.IMAGE_TWICE: (_IMAGE, "an entry before it has the same file, or the same name for its copy"),
    Rule.IMAGE_NAME: (_IMAGE, "its file name is no text in UTF-8: rename the file"),
    Rule.IMAGE_SIZE: (_IMAGE, "its entry gives no width and height"),
    Rule.IMAGE_OTHER_SIZE: (_IMAGE, "the file has another size than its entry says"),
    Rule.IMAGE_TOO_MANY_OBJECTS: (_IMAGE, "more than --max-objects objects"),
    Rule.IMAGE_MONOTONOUS: (_IMAGE, "at least 50 objects, at most 3 classes, one of them 95 % of all"),
    Rule.IMAGE_EMPTIED: (_IMAGE, "had objects, and all of them were dropped"),
    Rule.IMAGE_EMPTY: (_IMAGE, "has no objects (only with --drop-empty)"),
    Rule.IMAGE_NEEDS_RESIZE: (Effect.NOTED, "a side is no multiple of 32; resize once with --write-images"),
    Rule.IMAGE_NOT_EXHAUSTIVE: (Effect.NOTED, "LVIS: some classes are not marked everywhere in it"),
}
"""Every rule: what it does and when it applies."""
