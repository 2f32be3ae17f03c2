"""Pictures, opened with PIL: what an import looks at and writes, and the overlays of a contact sheet."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from protocol.coco import ImageFile, Rule
from protocol.coco.importer import IMAGE_MULTIPLE
from protocol.contracts import Record
from protocol.norm1000 import to_pixels
from protocol.record_lines import IMAGE_FORMATS

_LABEL_HEIGHT = 14
_COLOURS = (
    "#e6194b",
    "#3cb44b",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#008080",
    "#9a6324",
    "#f032e6",
    "#808000",
    "#46f0f0",
)


def check_image(path: Path, width: int, height: int) -> ImageFile | Rule:
    """The image as it is; a rule where it is missing, unreadable or has another size. Reads the header only."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            size = image.size
    except Exception:  # a broken file makes Pillow raise almost anything
        return Rule.IMAGE_MISSING
    return ImageFile(path, width, height) if size == (width, height) else Rule.IMAGE_OTHER_SIZE


def fit_size(width: int, height: int, *, max_pixels: int, multiple: int = IMAGE_MULTIPLE) -> tuple[int, int]:
    """The nearest size with sides that are multiples of `multiple`, of 4 to `max_pixels / multiple²` cells.

    `fit_size(640, 427, max_pixels=786432)` → (640, 416). Bins are relative to the sides, so they stay as they are.
    """
    scale = min(1.0, math.sqrt(max_pixels / (width * height)))
    sides = [max(1, round(side * scale / multiple)) for side in (width, height)]
    while sides[0] * sides[1] * multiple**2 > max_pixels and max(sides) > 1:
        sides[sides.index(max(sides))] -= 1
    while sides[0] * sides[1] < 4:
        sides[sides.index(min(sides))] += 1
    return sides[0] * multiple, sides[1] * multiple


class Resizer:
    """An image door that writes each image at a size that needs no resizing at run time (SPEC 2.1)."""

    def __init__(self, folder: Path, images_dir: Path, max_pixels: int) -> None:
        self._folder = folder
        self._images_dir = images_dir
        self._max_pixels = max_pixels

    def __call__(self, path: Path, width: int, height: int) -> ImageFile | Rule:
        """Writes the copy, in the folder structure of the source; JPEG stays JPEG at quality 95, the rest is PNG."""
        checked = check_image(path, width, height)
        if isinstance(checked, Rule):
            return checked
        source, root = Path(os.path.normpath(path)), os.path.normpath(self._images_dir)
        # A name such as ../a.jpg, which an instance file from elsewhere may hold, must not lead out of the folder.
        target = self._folder / (source.relative_to(root) if source.is_relative_to(root) else source.name)
        if target.suffix.lower() not in (".jpg", ".jpeg"):
            target = target.with_suffix(".png")
        size = fit_size(width, height, max_pixels=self._max_pixels)
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(target, quality=95)
        return ImageFile(target, *size)


def draw_overlay(record: Record) -> Image.Image:
    """The record's image with every shape and description drawn on it."""
    with Image.open(record.images[0], formats=IMAGE_FORMATS) as opened:
        image = opened.convert("RGB")
    draw = ImageDraw.Draw(image)
    for truth in record.objects:
        colour = _COLOURS[zlib.crc32(truth.desc.encode()) % len(_COLOURS)]
        pixels = to_pixels(truth.shape.bins, image.width, image.height)
        points = list(zip(pixels[0::2], pixels[1::2], strict=True))
        if truth.shape.geometry == "bbox_2d":
            (x1, x2), (y1, y2) = (sorted(values) for values in zip(*points, strict=True))
            draw.rectangle((x1, y1, x2, y2), outline=colour, width=2)
        else:
            draw.polygon(points, outline=colour, width=2)
        corner = (points[0][0] + 3, points[0][1] + 1)
        draw.rectangle(draw.textbbox(corner, truth.desc), fill="white")
        draw.text(corner, truth.desc, fill=colour)
    return image


def contact_sheet(records: Sequence[Record], path: Path, *, columns: int = 4, cell: int = 360) -> None:
    """Overlays of the records on one page, each with its place in the file; `cell` is a picture's width in pixels."""
    pictures = [ImageOps.contain(draw_overlay(record), (cell, 2 * cell)) for record in records]
    starts = range(0, len(records), columns)
    heights = [max(picture.height for picture in pictures[at : at + columns]) + _LABEL_HEIGHT for at in starts]
    sheet = Image.new("RGB", (columns * cell, sum(heights)), "white")
    draw = ImageDraw.Draw(sheet)
    for at, (record, picture) in enumerate(zip(records, pictures, strict=True)):
        left, top = at % columns * cell, sum(heights[: at // columns])
        sheet.paste(picture, (left, top + _LABEL_HEIGHT))
        draw.text((left + 3, top + 1), f"{Path(record.source).name}  {len(record.objects)} objects", fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
