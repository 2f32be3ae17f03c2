"""COCO and LVIS instance files → JSONL records (SPEC 2.1, 2.2, A14, A22).

    instances.json ─► annotations by image ─► shapes (shapes) ─► filters ─► splits ─► one JSONL per split

Every annotation is either written or dropped by one named rule: `annotations == objects + dropped` always holds.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from protocol.coco.instances import category_descs, group_by_image, load_instances
from protocol.coco.rules import Effect, Rule
from protocol.coco.shapes import ShapeOptions, annotation_shape
from protocol.coco.writer import RecordWriter
from protocol.contracts import Shape
from protocol.errors import ConfigError
from protocol.serialization import LONE_SURROGATE

IMAGE_MULTIPLE = 32
"""Pixels per image token side (patch 16, merge 2): sides must be multiples, since images are not resized at run
time."""
_MONOTONOUS_OBJECTS, _MONOTONOUS_CLASSES, _MONOTONOUS_SHARE = 50, 3, 0.95


class ImageFile(NamedTuple):
    """The image that a record names."""

    path: Path
    width: int
    height: int


Found = tuple[ImageFile, list[tuple[str, Shape]]]
"""What a record is made of: its image, and (desc, shape) of each object."""

ImageDoor = Callable[[Path, int, int], ImageFile | Rule]
"""(path, width, height) as the instance file says → the image to name, or the rule that drops it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportOptions:
    """What is imported and how it is cut up."""

    shapes: ShapeOptions = field(default_factory=ShapeOptions)
    max_objects: int = 100
    """Images with more objects are dropped."""
    drop_empty: bool = False
    """Drop images without annotations; they are valid records (SPEC A23)."""
    splits: Mapping[str, float] = field(default_factory=dict)
    """Name → share, summing to 1; each goes to `<out>_<name>.jsonl`. Empty: everything goes to `out`. An image's split
    follows from a hash of its file name, so that it stays where it is when others are added."""
    seed: int = 17
    """Which image falls into which split."""
    limit: int | None = None
    """Use only the first images of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportSummary:
    """What came out, and what every rule did."""

    source: str
    images_read: int
    annotations_read: int
    written: dict[str, tuple[int, int]]
    """JSONL path → (records, objects)."""
    rules: dict[Rule, int]
    """How often each rule applied; rules that did not are absent."""
    geometries: dict[str, int]
    descs: dict[str, int]
    """Objects per description, most frequent first."""
    objects_per_image: tuple[int, float, int]
    """Minimum, mean, maximum."""

    @property
    def num_objects(self) -> int:
        return sum(objects for _, objects in self.written.values())

    @property
    def num_dropped(self) -> int:
        """Annotations that were not written."""
        return sum(count for rule, count in self.rules.items() if rule.effect is Effect.OBJECT_DROPPED)


def import_coco(
    instances: str | Path,
    images_dir: str | Path,
    out: str | Path,
    options: ImportOptions | None = None,
    *,
    image_door: ImageDoor | None = None,
) -> ImportSummary:
    """Writes records with coordinate tokens, image paths relative to the JSONL, and returns what was done; without a
    record it leaves `out` as it was.

    Args:
        image_door: looks at each image that is about to be written (and may resize it); None only asks whether it
            is there.

    Raises:
        RecordError: the instance file cannot be read or is no COCO file.
        ConfigError: the splits do not sum to 1.
    """
    options = options or ImportOptions()
    _check_splits(options.splits)
    data = load_instances(Path(instances), boxes_only=options.shapes.geometry == "bbox")
    images = data["images"][: options.limit]
    counts: Counter[Rule] = Counter()
    by_image = group_by_image(data, counts)
    reader = _ImageReader(
        images_dir=Path(images_dir),
        descs=category_descs(data, instances),
        options=options,
        door=image_door or _is_there,
        counts=counts,
        base_names=Counter(Path(name).name for name in {_name(image) for image in data["images"]}),
    )
    with RecordWriter(Path(out), options.splits, options.seed) as writer:
        for image in images:
            found = reader.read(image, by_image.get(image["id"], []))
            if found is not None:
                writer.write(*found)
    return ImportSummary(
        source=str(instances),
        images_read=len(images),
        annotations_read=sum(len(by_image.get(image["id"], [])) for image in images) + counts[Rule.UNKNOWN_IMAGE],
        written=writer.written(),
        rules={rule: counts[rule] for rule in Rule if counts[rule]},
        geometries=dict(writer.geometries),
        descs=dict(writer.descs.most_common()),
        objects_per_image=writer.objects_per_image(),
    )


def _check_splits(splits: Mapping[str, float]) -> None:
    total = sum(splits.values())
    if splits and (abs(total - 1) > 1e-6 or min(splits.values()) < 0):
        shares = ", ".join(f"{name} {share:g}" for name, share in splits.items())
        raise ConfigError(f"--split: shares must be >= 0 and sum to 1, got {shares} (sum {total:g}); correct them")


@dataclass(frozen=True, slots=True, kw_only=True)
class _ImageReader:
    """Turns one image entry and its annotations into what a record holds."""

    images_dir: Path
    descs: Mapping[Any, str]
    options: ImportOptions
    door: ImageDoor
    counts: Counter[Rule]
    base_names: Counter[str]
    """How many different file names end so; one that is listed twice still means one file."""
    seen: set[str] = field(default_factory=set)
    """Files that records name."""

    def read(self, image: Mapping[str, Any], annotations: Sequence[Mapping[str, Any]]) -> Found | None:
        """None where a rule dropped the image; what its annotations had left is then counted as dropped with it."""
        rule = self._entry_rule(image, annotations)
        if rule is not None:
            return self._drop(rule, len(annotations))
        objects, applied = self._objects(annotations, image["width"], image["height"])
        rule = self._objects_rule(objects, annotations)
        file = self._file(image) if rule is None else rule
        if isinstance(file, Rule):
            self.counts.update({rule: n for rule, n in applied.items() if rule.effect is Effect.OBJECT_DROPPED})
            return self._drop(file, len(objects))
        self.counts.update(applied)
        self._note_image(image, file)
        return file, objects

    def _drop(self, rule: Rule, num_objects: int) -> Found | None:
        self.counts[rule] += 1
        self.counts[Rule.IN_DROPPED_IMAGE] += num_objects
        return None

    def _entry_rule(self, image: Mapping[str, Any], annotations: Sequence[Any]) -> Rule | None:
        sides = image.get("width"), image.get("height")
        if not all(isinstance(side, int) and side > 0 for side in sides):
            return Rule.IMAGE_SIZE
        if LONE_SURROGATE.search(_name(image)):
            return Rule.IMAGE_NAME
        return Rule.IMAGE_EMPTY if not annotations and self.options.drop_empty else None

    def _objects(
        self, annotations: Sequence[Mapping[str, Any]], width: int, height: int
    ) -> tuple[list[tuple[str, Shape]], Counter[Rule]]:
        found: dict[tuple[str, Shape], None] = {}
        applied: Counter[Rule] = Counter()
        for annotation in annotations:
            desc = self.descs.get(annotation.get("category_id"))
            if desc is None:
                applied[Rule.UNKNOWN_CATEGORY] += 1
                continue
            shape, rules = annotation_shape(annotation, width, height, self.options.shapes)
            if shape is not None and (desc, shape) in found:
                applied[Rule.DUPLICATE] += 1
                continue
            applied.update(rules)
            if shape is not None:
                found[desc, shape] = None
        return list(found), applied

    def _objects_rule(self, objects: Sequence[tuple[str, Shape]], annotations: Sequence[Any]) -> Rule | None:
        """The filters of SPEC 2.1."""
        if annotations and not objects:
            return Rule.IMAGE_EMPTIED
        if len(objects) > self.options.max_objects:
            return Rule.IMAGE_TOO_MANY_OBJECTS
        classes = Counter(desc for desc, _ in objects)
        if len(objects) >= _MONOTONOUS_OBJECTS and len(classes) <= _MONOTONOUS_CLASSES:
            (_, most), *_ = classes.most_common(1)
            return Rule.IMAGE_MONOTONOUS if most >= _MONOTONOUS_SHARE * len(objects) else None
        return None

    def _file(self, image: Mapping[str, Any]) -> ImageFile | Rule:
        path = self._path(_name(image))
        real = os.path.realpath(path)
        if real in self.seen:
            return Rule.IMAGE_TWICE
        file = self.door(path, image["width"], image["height"])
        if not isinstance(file, Rule):
            self.seen.add(real)
        return file

    def _path(self, name: str) -> Path:
        """Below the folder as the entry says, or in the folder itself, where no other entry could mean that file."""
        nested, base = self.images_dir / name, Path(name).name
        return nested if nested.exists() or self.base_names[base] > 1 else self.images_dir / base

    def _note_image(self, image: Mapping[str, Any], file: ImageFile) -> None:
        if file.width % IMAGE_MULTIPLE or file.height % IMAGE_MULTIPLE:
            self.counts[Rule.IMAGE_NEEDS_RESIZE] += 1
        if image.get("not_exhaustive_category_ids"):
            self.counts[Rule.IMAGE_NOT_EXHAUSTIVE] += 1


def _name(image: Mapping[str, Any]) -> str:
    """COCO names a file; LVIS gives a URL that ends in `val2017/000000397133.jpg`."""
    return str(image.get("file_name") or "/".join(str(image.get("coco_url", "")).split("/")[-2:]))


def _is_there(path: Path, width: int, height: int) -> ImageFile | Rule:
    return ImageFile(path, width, height) if path.is_file() else Rule.IMAGE_MISSING
