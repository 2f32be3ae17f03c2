"""The COCO import: what becomes of each kind of annotation, that every rule is counted, and that the sums agree."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.coco import Effect, ImageFile, ImportOptions, ImportSummary, Rule, ShapeOptions, import_coco
from protocol.coco.instances import load_instances
from protocol.coco.rle import decode_rle
from protocol.coco.rules import RULES
from protocol.coco.shapes import annotation_shape
from protocol.contracts import Shape
from protocol.errors import ConfigError, RecordError
from protocol.records import RecordFile

WIDTH, HEIGHT = 640, 480
SQUARE = [64.0, 48.0, 128.0, 48.0, 128.0, 96.0, 64.0, 96.0]
L_SHAPE = [64.0, 48.0, 320.0, 48.0, 320.0, 96.0, 128.0, 96.0, 128.0, 240.0, 64.0, 240.0]


def annotation(**changes: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 1, "category_id": 1, "bbox": [64.0, 48.0, 64.0, 48.0], "iscrowd": 0} | changes


def shape_of(geometry: Any = "bbox", crowds: Any = "drop", **changes: Any) -> tuple[Shape | None, list[Rule]]:
    options = ShapeOptions(geometry=geometry, crowds=crowds, max_points=6, min_side=1.0)
    return annotation_shape(annotation(**changes), WIDTH, HEIGHT, options)


def run(
    tmp_path: Path, images: int | list[dict[str, Any]], annotations: list[dict[str, Any]], **options: Any
) -> ImportSummary:
    """Imports a made-up file whose images are 1, 2, ...; every image is taken to be there."""
    entries = images
    if isinstance(images, int):
        entries = [
            {"id": number, "file_name": f"{number}.jpg", "width": WIDTH, "height": HEIGHT}
            for number in range(1, images + 1)
        ]
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "bow_(decorative_ribbons)"}, {"id": 3, "name": "salt, pepper"}]
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": entries, "annotations": annotations, "categories": names}), encoding="utf-8")
    return import_coco(
        file, tmp_path / "images", tmp_path / "out.jsonl", ImportOptions(**options), image_door=ImageFile
    )


def test_an_image_stands_for_one_entry(tmp_path: Path) -> None:
    """`b/1.jpg` is not there, and the `1.jpg` that is may be the other entry's."""
    (tmp_path / "images" / "a").mkdir(parents=True)
    for name in ("1.jpg", "a/2.jpg", "3.jpg"):
        (tmp_path / "images" / name).touch()
    names = ["1.jpg", "b/1.jpg", "a/2.jpg", "a/../a/2.jpg", "gone/3.jpg", "caf\udce9.jpg"]
    entries = [{"id": at, "file_name": name, "width": 64, "height": 64} for at, name in enumerate(names)]
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": entries, "annotations": [], "categories": []}))
    summary = import_coco(file, tmp_path / "images", tmp_path / "out.jsonl")
    assert summary.rules == {Rule.IMAGE_MISSING: 1, Rule.IMAGE_TWICE: 1, Rule.IMAGE_NAME: 1}
    assert [Path(record.images[0]).name for record in RecordFile(tmp_path / "out.jsonl")] == [
        "1.jpg",
        "2.jpg",
        "3.jpg",
    ]


def test_an_image_that_is_listed_twice_is_found_in_a_flat_folder(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.jpg").touch()
    entries = [{"id": at, "file_name": "val2017/1.jpg", "width": 64, "height": 64} for at in range(2)]
    file = tmp_path / "instances.json"
    file.write_text(json.dumps({"images": entries, "annotations": [], "categories": []}))
    summary = import_coco(file, tmp_path / "images", tmp_path / "out.jsonl")
    assert summary.rules == {Rule.IMAGE_TWICE: 1}
    assert len(list(RecordFile(tmp_path / "out.jsonl"))) == 1


def test_a_box_becomes_corner_bins() -> None:
    assert shape_of() == (Shape("bbox_2d", (100, 100, 200, 200)), [])


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"iscrowd": 1}, Rule.CROWD),
        ({"bbox": None}, Rule.BOX_MALFORMED),
        ({"bbox": [1, 2, 3]}, Rule.BOX_MALFORMED),
        ({"bbox": [1, 2, float("nan"), 4]}, Rule.BOX_MALFORMED),
        ({"bbox": [1, 2, -3, 4]}, Rule.BOX_MALFORMED),
        ({"bbox": [700, 10, 20, 20]}, Rule.BOX_OUTSIDE),
        ({"bbox": [-30, 10, 20, 20]}, Rule.BOX_OUTSIDE),
        ({"bbox": [WIDTH, 10, 20, 20]}, Rule.BOX_OUTSIDE),
        ({"bbox": [10, HEIGHT, 20, 20]}, Rule.BOX_OUTSIDE),
        ({"bbox": [-20, 10, 20, 20]}, Rule.BOX_OUTSIDE),
        ({"bbox": [10, -20, 20, 20]}, Rule.BOX_OUTSIDE),
        ({"bbox": [10, 10, 0, 20]}, Rule.BOX_DEGENERATE),
        ({"bbox": [10, 10, 0.7, 20]}, Rule.BOX_TOO_SMALL),
        ({"bbox": [10, 10, 20, -0.0]}, Rule.BOX_DEGENERATE),
    ],
)
def test_a_box_that_says_nothing_is_dropped_by_its_rule(changes: dict[str, Any], rule: Rule) -> None:
    assert shape_of(**changes) == (None, [rule])
    assert rule.effect is Effect.OBJECT_DROPPED


def test_a_box_thinner_than_a_bin_is_dropped() -> None:
    for box in ([100, 100, 0.01, 50], [100, 100, 50, 0.01]):
        found = annotation_shape(annotation(bbox=box), WIDTH, HEIGHT, ShapeOptions())
        assert found == (None, [Rule.BOX_FLAT_ON_GRID])
    assert shape_of(bbox=[64, 48, 1, 48]) == (Shape("bbox_2d", (100, 100, 102, 200)), []), "min_side is 1 pixel"


def test_a_box_over_the_border_is_cut_and_the_border_is_bin_999() -> None:
    assert shape_of(bbox=[576, 432, 64, 48]) == (Shape("bbox_2d", (900, 900, 999, 999)), [Rule.BOX_AT_BORDER])
    assert shape_of(bbox=[576, 48, 64, 48]) == (Shape("bbox_2d", (900, 100, 999, 200)), [Rule.BOX_AT_BORDER])
    assert shape_of(bbox=[64, 432, 64, 48]) == (Shape("bbox_2d", (100, 900, 200, 999)), [Rule.BOX_AT_BORDER])
    assert shape_of(bbox=[-64, 432, 128, 100]) == (
        Shape("bbox_2d", (0, 900, 100, 999)),
        [Rule.BOX_CLIPPED, Rule.BOX_AT_BORDER],
    )


def test_a_crowd_can_be_kept_as_a_box() -> None:
    assert shape_of(crowds="box", iscrowd=1)[0] == Shape("bbox_2d", (100, 100, 200, 200))


def test_a_missing_box_is_taken_from_the_polygon() -> None:
    shape, _ = shape_of(bbox=None, segmentation=[SQUARE])
    assert shape == Shape("bbox_2d", (100, 100, 200, 200))


def test_a_polygon_becomes_a_clockwise_ring_from_the_top_left() -> None:
    backwards = [value for at in range(len(L_SHAPE) - 2, -2, -2) for value in L_SHAPE[at : at + 2]]
    shape, rules = shape_of("poly", segmentation=[backwards])
    assert shape == Shape("poly", (100, 100, 500, 100, 500, 200, 200, 200, 200, 500, 100, 500))
    assert rules == []


MASK = {"size": [HEIGHT, WIDTH], "counts": [0, HEIGHT * WIDTH]}
RING_MASK = {"size": [5, 5], "counts": [6, 3, 2, 1, 1, 1, 2, 3, 6]}


@pytest.mark.parametrize(
    ("segmentation", "rule"),
    [
        (None, Rule.POLY_MISSING),
        ([], Rule.POLY_MISSING),
        ([[1, 2, 3, 4]], Rule.POLY_MALFORMED),
        ([[1, 2, 3, 4, 5, "x"]], Rule.POLY_MALFORMED),
        ({"size": 3}, Rule.POLY_MALFORMED),
        ({"size": [5, 5], "counts": [3]}, Rule.POLY_MALFORMED),
        ({"size": [5, 5], "counts": "~"}, Rule.POLY_MALFORMED),
        ({"size": [10**7, 10**7], "counts": [10**14]}, Rule.POLY_MALFORMED),
        (MASK, Rule.POLY_RLE),
        (RING_MASK, Rule.POLY_RLE_WITH_HOLES),
        ([L_SHAPE, [70.0, 60.0, 80.0, 60.0, 80.0, 70.0]], Rule.POLY_HOLE),
        ([SQUARE, [value + 200 for value in SQUARE]], Rule.POLY_PARTS),
        ([[64.0, 48.0, 128.0, 48.0, 200.0, 48.0]], Rule.POLY_FLAT_ON_GRID),
        ([[64.0, 48.0, 128.0, 48.0, 200.0, 48.0], [300.0, 48.0, 310.0, 48.0, 320.0, 48.0]], Rule.POLY_PARTS),
        ([[64.0, 48.0, 128.0, 96.0, 128.0, 48.0, 64.0, 80.0]], Rule.POLY_CROSSES_ITSELF),
    ],
)
def test_what_one_ring_cannot_say_becomes_a_box_by_its_rule(segmentation: object, rule: Rule) -> None:
    assert shape_of("poly", segmentation=segmentation) == (Shape("bbox_2d", (100, 100, 200, 200)), [rule])
    assert rule.effect is Effect.BOX_INSTEAD


@given(st.lists(st.booleans(), min_size=24, max_size=24))
def test_run_length_text_is_read_as_pycocotools_writes_it(cells: list[bool]) -> None:
    mask = np.array(cells, dtype=np.uint8).reshape(4, 6, order="F")
    written = pycocotools.mask.encode(np.asfortranarray(mask))
    assert (decode_rle(written) == mask).all()
    assert (decode_rle(written | {"counts": written["counts"].decode()}) == mask).all()


def test_long_runs_are_read_as_pycocotools_writes_them() -> None:
    mask = np.zeros((700, 900), dtype=np.uint8, order="F")
    mask[10:600, 30:800] = 1
    mask[200:300, 100:500] = 0
    assert (decode_rle(pycocotools.mask.encode(mask)) == mask).all()


@pytest.mark.parametrize(
    ("size", "counts", "message"),
    [
        ([1, 2, 3], [6], "size must be"),
        ("23", [6], "size must be"),
        ([2.0, 3], [6], "size must be"),
        ([0, 5], [], "size must be"),
        ([-2, -3], [6], "size must be"),
        ([10**7, 10**7], [10**14], "size is"),
        ([2, 3], None, "counts must be"),
        ([2, 3], {6: 1}, "counts must be"),
        ([2, 3], [3.0, 3], "counts must be"),
        ([2, 3], [7, -1], "counts must be"),
        ([2, 3], [10**15], "counts cover"),
        ([2, 3], "/6", "counts hold a character"),
        ([2, 3], "p6", "counts hold a character"),
        ([2, 3], "6P", "counts end within"),
    ],
)
def test_a_mask_that_is_none_is_refused_before_it_is_made(size: object, counts: object, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}"):
        decode_rle({"size": size, "counts": counts})


def test_a_mask_of_one_row_is_read() -> None:
    assert decode_rle({"size": [1, 3], "counts": [1, 1, 1]}).tolist() == [[False, True, False]]


def test_auto_prefers_a_box_where_it_says_the_same() -> None:
    assert shape_of("auto", segmentation=[SQUARE]) == (Shape("bbox_2d", (100, 100, 200, 200)), [Rule.POLY_FILLS_BOX])
    exactly = ShapeOptions(geometry="auto", box_fill=1.0)
    assert annotation_shape(annotation(segmentation=[SQUARE]), WIDTH, HEIGHT, exactly)[1] == [Rule.POLY_FILLS_BOX]
    shape, rules = shape_of("auto", segmentation=[L_SHAPE])
    assert shape is not None
    assert (shape.geometry, rules) == ("poly", [])


def test_the_largest_of_several_parts_may_stand_for_all() -> None:
    speck, line = [400.0, 400.0, 402.0, 400.0, 402.0, 402.0], [400.0, 400.0, 402.0, 400.0, 404.0, 400.0]
    for other in (speck, line):
        shape, rules = shape_of("poly", segmentation=[other, L_SHAPE])
        assert shape is not None
        assert (shape.geometry, rules) == ("poly", [Rule.POLY_LARGEST_PART])


def test_a_polygon_is_moved_inside_and_capped() -> None:
    outline = [-20.0, 0.0, 64.0, 0.0, 100.0, 30.0, 128.0, 48.0, 128.0, 96.0, 90.0, 110.0, 64.0, 120.0, 0.0, 96.0]
    shape, rules = shape_of("poly", segmentation=[outline], bbox=[0, 0, 128, 120])
    assert shape is not None
    assert len(shape.bins) == 12
    assert rules == [Rule.POLY_CLAMPED, Rule.POLY_SIMPLIFIED]


def test_records_are_written_in_order_with_cleaned_names_and_relative_images(tmp_path: Path) -> None:
    annotations = [
        annotation(category_id=2, bbox=[64, 240, 64, 48]),
        annotation(category_id=3),
        annotation(category_id=1, bbox=[0, 48, 64, 48]),
    ]
    summary = run(tmp_path, 2, annotations)
    record, _ = RecordFile(tmp_path / "out.jsonl")
    line, _ = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    assert [each["desc"] for each in line["objects"]] == ["cat", "salt,pepper", "bow (decorative ribbons)"]
    assert [truth.desc for truth in record.objects] == ["cat", "salt,pepper", "bow (decorative ribbons)"]
    assert line["images"] == ["images/1.jpg"]
    assert record.images == (str(tmp_path / "images" / "1.jpg"),)
    assert summary.written == {str(tmp_path / "out.jsonl"): (2, 3)}
    assert summary.objects_per_image == (0, 1.5, 3)
    assert summary.descs == {"cat": 1, "salt,pepper": 1, "bow (decorative ribbons)": 1}


def test_a_polygon_says_how_many_vertices_it_has(tmp_path: Path) -> None:
    annotations = [annotation(segmentation=[L_SHAPE]), annotation(bbox=[64, 240, 64, 48])]
    run(tmp_path, 1, annotations, shapes=ShapeOptions(geometry="poly"))
    polygon, box = json.loads((tmp_path / "out.jsonl").read_text())["objects"]
    assert (polygon["poly_points"], len(polygon["poly"])) == (6, 12)
    assert set(box) == {"bbox_2d", "desc"}


def test_a_linked_image_is_named_as_the_folder_has_it_in_a_file_that_may_lie_anywhere(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "blob").touch()
    (tmp_path / "images" / "1.jpg").symlink_to(tmp_path / "blob")
    entry = {"id": 1, "file_name": "1.jpg", "width": WIDTH, "height": HEIGHT}
    (tmp_path / "x.json").write_text(json.dumps({"images": [entry], "annotations": [], "categories": []}))
    out = tmp_path / "new" / "deep" / "out.jsonl"
    import_coco(tmp_path / "x.json", tmp_path / "images", out)
    assert json.loads(out.read_text())["images"] == ["../../images/1.jpg"]


def test_filters_drop_images_and_count_what_was_in_them(tmp_path: Path) -> None:
    crowd = [annotation(image_id=1, category_id=1 + (x > 56), bbox=[x, 0, 5, 5 + x]) for x in range(60)]
    many = [annotation(image_id=2, category_id=1 + x % 3, bbox=[x, 0, 5, 5]) for x in range(101)]
    empties = [annotation(image_id=3, bbox=[0, 0, 0, 0])]
    summary = run(tmp_path, 4, [*crowd, *many, *empties], drop_empty=True)
    assert summary.rules == {
        Rule.BOX_DEGENERATE: 1,
        Rule.IMAGE_TOO_MANY_OBJECTS: 1,
        Rule.IMAGE_MONOTONOUS: 1,
        Rule.IMAGE_EMPTIED: 1,
        Rule.IMAGE_EMPTY: 1,
        Rule.IN_DROPPED_IMAGE: 161,
    }
    assert summary.num_objects == 0
    assert summary.num_dropped == summary.annotations_read == 162


def test_an_image_with_as_many_objects_as_are_allowed_is_a_record(tmp_path: Path) -> None:
    summary = run(tmp_path, 1, [annotation(category_id=1 + x % 3, bbox=[x, 0, 5, 5]) for x in range(100)])
    assert (summary.num_objects, summary.rules) == (100, {})


def test_an_image_without_annotations_is_a_record(tmp_path: Path) -> None:
    run(tmp_path, 1, [])
    (record,) = RecordFile(tmp_path / "out.jsonl")
    assert record.objects == ()


def test_strays_and_duplicates_are_counted(tmp_path: Path) -> None:
    strays = [annotation(image_id=9), annotation(category_id=9), annotation(), annotation()]
    summary = run(tmp_path, 1, strays)
    assert summary.rules == {Rule.UNKNOWN_IMAGE: 1, Rule.UNKNOWN_CATEGORY: 1, Rule.DUPLICATE: 1}
    assert (summary.num_objects, summary.num_dropped) == (1, 3)


def test_sizes_that_need_resizing_and_unknown_sizes_are_counted(tmp_path: Path) -> None:
    odd = {"id": 1, "file_name": "1.jpg", "width": 641, "height": 480, "not_exhaustive_category_ids": [3]}
    flat = {"id": 3, "file_name": "3.jpg", "width": 640, "height": 0}
    summary = run(tmp_path, [odd, {"id": 2, "file_name": "2.jpg"}, flat], [annotation(image_id=2)])
    assert summary.rules == {
        Rule.IMAGE_SIZE: 2,
        Rule.IMAGE_NEEDS_RESIZE: 1,
        Rule.IMAGE_NOT_EXHAUSTIVE: 1,
        Rule.IN_DROPPED_IMAGE: 1,
    }


def test_an_lvis_image_is_found_by_its_url(tmp_path: Path) -> None:
    (tmp_path / "images" / "val2017").mkdir(parents=True)
    (tmp_path / "images" / "val2017" / "7.jpg").touch()
    entry = {"id": 1, "coco_url": "http://images.example/val2017/7.jpg", "width": 64, "height": 64}
    run(tmp_path, [entry], [])
    (record,) = RecordFile(tmp_path / "out.jsonl")
    assert record.images == (str(tmp_path / "images" / "val2017" / "7.jpg"),)


def test_a_missing_image_is_dropped_without_a_door(tmp_path: Path) -> None:
    entries = [{"id": 1, "file_name": "1.jpg", "width": WIDTH, "height": HEIGHT}]
    file = tmp_path / "instances.json"
    file.write_text(
        json.dumps({"images": entries, "annotations": [annotation()], "categories": [{"id": 1, "name": "a"}]})
    )
    summary = import_coco(file, tmp_path, tmp_path / "out.jsonl")
    assert summary.rules[Rule.IMAGE_MISSING] == summary.rules[Rule.IN_DROPPED_IMAGE] == 1


def test_splits_share_the_images_and_do_not_move_when_others_come(tmp_path: Path) -> None:
    shares = {"train": 0.8, "val": 0.2}

    def parts(count: int) -> dict[str, set[str]]:
        run(tmp_path, count, [], splits=shares)
        return {name: {record.images[0] for record in RecordFile(tmp_path / f"out_{name}.jsonl")} for name in shares}

    small, large = parts(200), parts(400)
    assert len(large["train"]) + len(large["val"]) == 400
    assert not large["train"] & large["val"]
    assert 0.7 < len(large["train"]) / 400 < 0.9
    assert small["train"] <= large["train"]
    assert small["val"] <= large["val"]


def test_shares_must_sum_to_one_and_none_is_negative(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sum to 1, got train 0\.8, val 0\.1"):
        run(tmp_path, 1, [], splits={"train": 0.8, "val": 0.1})
    with pytest.raises(ConfigError, match=r">= 0 and sum to 1, got train 1\.2, val -0\.2"):
        run(tmp_path, 1, [], splits={"train": 1.2, "val": -0.2})
    written = run(tmp_path, 3, [], splits={"train": 1.0, "val": 0.0}).written
    assert list(written.values()) == [(3, 0), (0, 0)]
    assert [Path(path).read_text().count("\n") for path in written] == [3, 0]


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"images": []}',
        '{"images": [], "annotations": {}, "categories": []}',
        '{"images": [{}], "annotations": [], "categories": []}',
        '{"images": [], "annotations": [1], "categories": []}',
        '{"images": [], "annotations": [], "categories": []} 2',
        '{"images": [], "annotations": [], "categories": [{"id": 1}]}',
    ],
)
def test_a_file_that_is_no_instance_file_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(RecordError, match=r"x\.json: (is no JSON|has no list|[a-z]+.0. is no object|a category needs)"):
        import_coco(tmp_path / "x.json", tmp_path, tmp_path / "out.jsonl")


def test_nothing_is_left_behind_after_an_error(tmp_path: Path) -> None:
    not_a_number: Any = None
    with pytest.raises(TypeError):
        run(tmp_path, 2, [annotation(image_id=2)], shapes=ShapeOptions(min_side=not_a_number))
    assert [path.name for path in tmp_path.iterdir()] == ["instances.json"]


NUMBERS = st.floats(-50, 700) | st.integers(-50, 700)
BOXES = st.lists(NUMBERS, min_size=3, max_size=5) | st.none()
PARTS = st.lists(st.lists(NUMBERS, max_size=12), max_size=3) | st.none()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([1, 2, 3, 9]), st.integers(1, 4), BOXES, PARTS, st.booleans()), max_size=12),
    st.sampled_from(["bbox", "poly", "auto"]),
)
def test_every_annotation_is_written_or_dropped_by_one_rule(tmp_path: Path, made: list[Any], geometry: Any) -> None:
    annotations = [
        annotation(image_id=image, category_id=category, bbox=box, segmentation=parts, iscrowd=int(crowd))
        for image, category, box, parts, crowd in made
    ]
    # Nothing is marked in the fourth image, so that there always is a record to write; 9 is none.
    summary = run(tmp_path, 4, annotations, shapes=ShapeOptions(geometry=geometry, max_points=5))
    assert summary.annotations_read == len(annotations) == summary.num_objects + summary.num_dropped
    written = [truth for record in RecordFile(tmp_path / "out.jsonl") for truth in record.objects]
    assert len(written) == summary.num_objects == sum(summary.geometries.values()) == sum(summary.descs.values())
    assert all(len(truth.shape.bins) <= 10 for truth in written)


def test_every_rule_says_what_it_does() -> None:
    assert set(RULES) == set(Rule)
    assert all(rule.text for rule in Rule)


@pytest.mark.parametrize(("boxes_only", "share"), [(True, 0.5), (False, 1.5)])
def test_a_large_file_is_never_in_memory_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, boxes_only: bool, share: float
) -> None:
    """As Python's numbers its polygons alone would be four times the file."""
    monkeypatch.setattr("protocol.coco.json_stream.WINDOW", 2**12)
    ring = [round(100 + 0.37 * at, 2) for at in range(90)]
    entry = {"id": 1, "file_name": "1.jpg", "width": WIDTH, "height": HEIGHT}
    data = {"annotations": [annotation(segmentation=[ring])] * 1000, "images": [entry], "categories": []}
    (tmp_path / "x.json").write_text(json.dumps(data))
    tracemalloc.start()
    try:
        found = load_instances(tmp_path / "x.json", boxes_only=boxes_only)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found["annotations"]) == 1000
    assert peak < share * (tmp_path / "x.json").stat().st_size


@pytest.mark.parametrize("geometry", ["bbox", "poly"])
def test_coordinates_are_not_rounded_on_their_way(tmp_path: Path, geometry: Any) -> None:
    """Bin 100 begins at 63.68 pixels; a float32 could not tell the two apart."""
    below = 63.68 * (1 - 1e-12)
    marks = [[x, 48.0, 320.0, 48.0, 320.0, 240.0] for x in (below, 63.68)]
    annotations = [annotation(bbox=[ring[0], 48, 256, 192], segmentation=[ring]) for ring in marks]
    run(tmp_path, 1, annotations, shapes=ShapeOptions(geometry=geometry))
    (record,) = RecordFile(tmp_path / "out.jsonl")
    assert [truth.shape.bins[0] for truth in record.objects] == [99, 100]


def test_what_is_no_number_reaches_the_rule_that_drops_it(tmp_path: Path) -> None:
    ring = [*SQUARE[:-1], None]
    boxes = [annotation(bbox=box, segmentation=[SQUARE]) for box in ([64, 48, True, 48], [64, 48, 10**400, 48], 64)]
    rings = [annotation(segmentation=[ring]), annotation(category_id=2, segmentation=[64])]
    summary = run(tmp_path, 1, [*boxes, *rings], shapes=ShapeOptions(geometry="poly"))
    assert summary.rules == {Rule.BOX_MALFORMED: 3, Rule.POLY_MALFORMED: 2}


@pytest.mark.parametrize("huge", [10**400, -(10**400), 2**1024], ids=["positive", "negative", "just too large"])
def test_an_integer_that_no_float_holds_reaches_the_rule_that_drops_it(tmp_path: Path, huge: int) -> None:
    annotations = [annotation(bbox=[64, 48, huge, 48]), annotation(segmentation=[[*SQUARE[:-1], huge]])]
    summary = run(tmp_path, 1, annotations, shapes=ShapeOptions(geometry="poly"))
    assert summary.rules == {Rule.BOX_MALFORMED: 1, Rule.POLY_MALFORMED: 1}
    assert shape_of(bbox=[64, 48, float("inf"), float("nan")]) == (None, [Rule.BOX_MALFORMED])


def test_a_file_in_another_encoding_is_told_with_its_byte_and_no_place(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'{"info": "' + b"x" * 2**21 + 'crêpe"}'.encode("latin-1"))
    with pytest.raises(RecordError, match=r"x.json: is no text in utf-8 \(byte 0xea: [a-z ]+\); save it in UTF-8$"):
        load_instances(tmp_path / "x.json", boxes_only=True)


def test_a_file_that_is_nested_too_deep_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"info": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(RecordError, match=r"x.json: is no JSON \(maximum recursion depth exceeded"):
        load_instances(tmp_path / "x.json", boxes_only=True)


def test_lists_of_other_names_are_read_over(tmp_path: Path) -> None:
    data = {"licenses": [{"id": 1}], "images": [], "annotations": [], "info": {"year": 1}, "categories": []}
    (tmp_path / "x.json").write_text(json.dumps(data))
    assert load_instances(tmp_path / "x.json", boxes_only=True) == {"images": [], "annotations": [], "categories": []}


def test_a_name_that_comes_twice_stands_for_its_last_value(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"images": [], "annotations": [], "categories": [], "images": 1}')
    with pytest.raises(RecordError, match="has no list `images`"):
        import_coco(tmp_path / "x.json", tmp_path, tmp_path / "out.jsonl")
