"""Records with their objects, drawn on one page: what `import-coco` wrote, and what `check` was given.

A look at it shows what no rule finds: sides that are swapped, shapes of another image, wrong descriptions.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from deploy.overlay import draw_label, draw_shape
from protocol.contracts import Record
from protocol.errors import ConfigError, RecordError
from protocol.record_lines import IMAGE_FORMATS
from protocol.records import RecordFile

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
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


def check_target(path: Path | None) -> None:
    """ConfigError for what could not be written, before work that may take hours."""
    if path is not None and (path.suffix.lower() not in SUFFIXES or path.is_dir()):
        raise ConfigError(f"--contact-sheet: {path} is no picture; name a file that ends in {', '.join(SUFFIXES)}")


def sample_rows(files: Sequence[RecordFile], count: int) -> Iterator[tuple[RecordFile, int]]:
    """At most `count` rows from all over the files, in order: of each, however short, two where there is room, else by
    length; the middle of each stretch."""
    least = min(2, count // max(1, len(files)))
    cells = [min(least, len(file)) for file in files]
    while sum(cells) < min(count, sum(map(len, files))):
        widest = max(range(len(files)), key=lambda at: len(files[at]) / (cells[at] + 1))
        cells[widest] += 1
    for file, share in zip(files, cells, strict=True):
        for step in range(share):
            yield file, (2 * step + 1) * len(file) // (2 * share)


def draw_overlay(record: Record, cell: int) -> Image.Image:
    """The record's image, `cell` pixels wide at most, with every shape and description drawn on it."""
    with Image.open(record.images[0], formats=IMAGE_FORMATS) as opened:
        image = ImageOps.contain(opened.convert("RGB"), (cell, 2 * cell))
    painter = ImageDraw.Draw(image)
    colours = [_COLOURS[zlib.crc32(truth.desc.encode()) % len(_COLOURS)] for truth in record.objects]
    for truth, colour in zip(record.objects, colours, strict=True):
        draw_shape(painter, truth.shape, image.size, colour, 2)
    for truth, colour in zip(record.objects, colours, strict=True):
        draw_label(painter, truth.desc, truth.shape, image.size, "white", colour)
    return image


def contact_sheet(
    files: Sequence[RecordFile], path: Path, *, count: int = 12, columns: int = 4, cell: int = 360
) -> None:
    """Records from all over the files on one page, each with its place in its file, and says where the page is.

    `cell` is a picture's width in pixels. A record that cannot be read or drawn is left out; RecordError without any.
    """
    drawn = [found for file, row in sample_rows(files, count) if (found := _draw(file, row, cell)) is not None]
    if not drawn:
        raise RecordError("--contact-sheet: no record could be drawn; correct lines and images first")
    starts = range(0, len(drawn), columns)
    heights = [max(picture.height for _, picture in drawn[at : at + columns]) + _LABEL_HEIGHT for at in starts]
    sheet = Image.new("RGB", (min(columns, len(drawn)) * cell, sum(heights)), "white")
    painter = ImageDraw.Draw(sheet)
    for at, (record, picture) in enumerate(drawn):
        left, top = at % columns * cell, sum(heights[: at // columns])
        sheet.paste(picture, (left, top + _LABEL_HEIGHT))
        text = f"{Path(record.source).name}  {len(record.objects)} objects"
        painter.text((left + 3, top + 1), text, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
    print(f"{len(drawn)} records with their objects: {path}", file=sys.stderr)


def _draw(file: RecordFile, row: int, cell: int) -> tuple[Record, Image.Image] | None:
    try:
        record = file[row]
        return record, draw_overlay(record, cell)
    except Exception:  # a broken file makes Pillow raise almost anything; import and check say what is wrong with it
        return None
