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
from protocol.errors import ConfigError
from protocol.norm1000 import to_pixels
from protocol.record_lines import DEEP_MODES, IMAGE_FORMATS

SHEET_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""What a contact sheet may be written as."""
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
    """The image as it is, or the rule that its header breaks: missing, unreadable, too deep, another size."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            size, mode = image.size, image.mode
    except Exception:  # a broken file makes Pillow raise almost anything
        return Rule.IMAGE_MISSING
    if mode in DEEP_MODES:
        return Rule.IMAGE_DEEP
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
        """ConfigError where the copies could take the place of originals."""
        self._folder = folder
        self._images_dir = images_dir
        self._max_pixels = max_pixels
        self._written: set[Path] = set()
        if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(images_dir)):
            raise ConfigError(
                f"--write-images: {folder} lies in --images {images_dir}, where a copy could overwrite a photograph; "
                "name a folder outside it"
            )

    def __call__(self, path: Path, width: int, height: int) -> ImageFile | Rule:
        """Writes the copy, in the folder structure of the source; JPEG stays JPEG at quality 95, the rest is PNG."""
        checked = check_image(path, width, height)
        if isinstance(checked, Rule):
            return checked
        size = fit_size(width, height, max_pixels=self._max_pixels)
        try:
            with Image.open(path, formats=IMAGE_FORMATS) as image:
                copy = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        except Exception:  # the header was read before: the rest of the file is broken
            return Rule.IMAGE_MISSING
        target = self._target(path)
        if target in self._written:
            return Rule.IMAGE_TWICE
        self._written.add(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        copy.save(target, quality=95)
        return ImageFile(target, *size)

    def _target(self, path: Path) -> Path:
        """`a.bmp` → `a.bmp.png`, since there may be an `a.png` as well. One from elsewhere, such as ../a.jpg, which
        an instance file may hold, does not lead out of the folder."""
        source, root = Path(os.path.abspath(path)), os.path.abspath(self._images_dir)
        if source.is_relative_to(root):
            target = self._folder / source.relative_to(root)
        else:
            target = self._folder / f"outside-{zlib.crc32(os.fsencode(source.parent)):08x}" / source.name
        return target if target.suffix.lower() in (".jpg", ".jpeg", ".png") else target.with_name(f"{target.name}.png")


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
