"""What an import looks at and writes of images."""

from __future__ import annotations

import math
import os
import zlib
from pathlib import Path

from PIL import Image

from protocol.coco import ImageFile, Rule
from protocol.coco.importer import IMAGE_MULTIPLE
from protocol.errors import ConfigError
from protocol.record_lines import DEEP_MODES, IMAGE_FORMATS


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


def fit_size(width: int, height: int, *, max_pixels: int) -> tuple[int, int]:
    """The nearest size with sides that are multiples of IMAGE_MULTIPLE, of 4 cells to `max_pixels`.

    `fit_size(640, 427, max_pixels=786432)` → (640, 416). Bins are relative to the sides, so they stay as they are.
    """
    scale = min(1.0, math.sqrt(max_pixels / (width * height)))
    sides = [max(1, round(side * scale / IMAGE_MULTIPLE)) for side in (width, height)]
    while sides[0] * sides[1] * IMAGE_MULTIPLE**2 > max_pixels and max(sides) > 1:
        sides[sides.index(max(sides))] -= 1
    while sides[0] * sides[1] < 4:
        sides[sides.index(min(sides))] += 1
    return sides[0] * IMAGE_MULTIPLE, sides[1] * IMAGE_MULTIPLE


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
