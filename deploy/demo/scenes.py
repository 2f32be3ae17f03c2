"""Drawn scenes: coloured shapes on a noisy background, with their boxes and polygons.

Every scene is a function of (seed, index, settings) alone, so a data set is named by two numbers and never shipped.
Corners lie on a `grid_px` lattice: that keeps the number of distinct coordinates small enough for a model of 3.5 M
parameters to learn from nothing on a laptop, without changing the format.

Circles, squares and bars are annotated as `bbox_2d`, triangles and diamonds as `poly` (SPEC 2.1, canonical form A22).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from protocol.contracts import GeometryType
from protocol.norm1000 import to_bin
from protocol.vocab import coord_token

COLOURS = {
    "red": (214, 48, 49),
    "green": (39, 174, 96),
    "blue": (41, 98, 255),
    "yellow": (249, 202, 36),
    "purple": (142, 68, 173),
    "white": (245, 245, 245),
}
POLYGON_SHAPES = ("triangle", "diamond")


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneSettings:
    """How scenes look; the defaults are those of the demo."""

    side_px: int = 128
    grid_px: int = 4
    min_objects: int = 1
    max_objects: int = 4
    min_side_px: int = 20
    max_side_px: int = 56
    polygon_share: float = 0.25
    """Share of objects that are polygons."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_objects <= self.max_objects <= 8:
            got = f"{self.min_objects}, {self.max_objects}"
            raise ValueError(f"1 <= min_objects <= max_objects <= 8 expected, got {got}")


@dataclass(frozen=True, slots=True)
class DrawnObject:
    """One shape; `points` are pixels, flat x, y, ..."""

    desc: str
    geometry: GeometryType
    points: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Scene:
    image: Image.Image
    objects: tuple[DrawnObject, ...]
    """Sorted by top, then left edge, as the training order wants them."""


def draw_scene(seed: int, index: int, settings: SceneSettings = SceneSettings()) -> Scene:
    """Draws scene `index` of data set `seed`."""
    rng = np.random.default_rng((seed, index))
    boxes = _place_boxes(rng, settings)
    image = _background(rng, settings.side_px)
    painter = ImageDraw.Draw(image)
    objects = [_draw_object(painter, rng, box, settings) for box in boxes]
    return Scene(image, tuple(sorted(objects, key=lambda o: (min(o.points[1::2]), min(o.points[0::2])))))


def _place_boxes(rng: np.random.Generator, settings: SceneSettings) -> list[tuple[int, int, int, int]]:
    """Boxes that do not touch; fewer than drawn for when the canvas is full."""
    wanted = int(rng.integers(settings.min_objects, settings.max_objects + 1))
    step, side = settings.grid_px, settings.side_px
    boxes: list[tuple[int, int, int, int]] = []
    for _ in range(60):
        if len(boxes) == wanted:
            break
        width, height = rng.integers(settings.min_side_px // step, settings.max_side_px // step + 1, size=2) * step
        x = int(rng.integers(0, (side - width) // step)) * step
        y = int(rng.integers(0, (side - height) // step)) * step
        box = (x, y, x + int(width), y + int(height))
        if all(box[0] >= b[2] or b[0] >= box[2] or box[1] >= b[3] or b[1] >= box[3] for b in boxes):
            boxes.append(box)
    return boxes


def _background(rng: np.random.Generator, side: int) -> Image.Image:
    base = rng.integers(20, 70, size=3)
    noise = rng.integers(-12, 13, size=(side, side, 1))
    return Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8))


def _draw_object(
    painter: ImageDraw.ImageDraw, rng: np.random.Generator, box: tuple[int, int, int, int], settings: SceneSettings
) -> DrawnObject:
    colour = str(rng.choice(list(COLOURS)))
    left, top, right, bottom = box
    middle = (left + right) // 2
    if rng.random() < settings.polygon_share:
        name = str(rng.choice(POLYGON_SHAPES))
        if name == "triangle":
            points: tuple[int, ...] = (middle, top, right, bottom, left, bottom)
        else:
            half = (top + bottom) // 2
            points = (middle, top, right, half, middle, bottom, left, half)
        painter.polygon(points, fill=COLOURS[colour])
        return DrawnObject(f"{colour} {name}", "poly", points)
    ratio = (right - left) / (bottom - top)
    name = "bar" if ratio > 1.6 or ratio < 0.625 else str(rng.choice(("circle", "square")))
    edges = (left, top, right - 1, bottom - 1)
    if name == "circle":
        painter.ellipse(edges, fill=COLOURS[colour])
    else:
        painter.rectangle(edges, fill=COLOURS[colour])
    return DrawnObject(f"{colour} {name}", "bbox_2d", box)


def scene_row(scene: Scene, image_path: str) -> dict[str, object]:
    """The JSONL record of a scene (SPEC 2.1)."""
    width, height = scene.image.size
    objects = [
        {
            o.geometry: [coord_token(to_bin(v, height if i % 2 else width)) for i, v in enumerate(o.points)],
            "desc": o.desc,
        }
        for o in scene.objects
    ]
    return {"images": [image_path], "width": width, "height": height, "objects": objects}


def write_scenes(folder: Path, name: str, count: int, seed: int) -> Path:
    """Writes `folder/name.jsonl` and its PNGs; returns the JSONL's path. Rewrites nothing that is already complete."""
    target = folder / f"{name}.jsonl"
    if target.exists() and sum(1 for _ in target.open()) == count:
        return target
    (folder / name).mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".jsonl.partial")
    with partial.open("w") as lines:
        for index in range(count):
            scene = draw_scene(seed, index)
            scene.image.save(folder / name / f"{index:06d}.png", compress_level=1)
            lines.write(json.dumps(scene_row(scene, f"{name}/{index:06d}.png")) + "\n")
    partial.rename(target)
    return target


TRAIN_SEED, VALIDATION_SEED = 11, 12
"""Data sets of the demo; the checkpoint was made from another one."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Draws the demo's training and validation scenes.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--train", type=int, default=2000, help="number of training scenes")
    parser.add_argument("--val", type=int, default=256, help="number of validation scenes")
    arguments = parser.parse_args()
    write_scenes(arguments.folder, "train", arguments.train, TRAIN_SEED)
    write_scenes(arguments.folder, "val", arguments.val, VALIDATION_SEED)


if __name__ == "__main__":
    main()
