"""One sample as a picture: the image with ground truth, predictions, matches and misses."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from protocol.contracts import GroundTruth, MatchedPair, Shape
from protocol.norm1000 import to_pixels
from protocol.record_lines import IMAGE_FORMATS
from protocol.traces import RolloutTrace

_LEGEND_PX = 24
_FONT_PX = 12


class Mark(StrEnum):
    """What an outline stands for, in the order of drawing."""

    FOUND = "truth, found"
    MISSED = "truth, missed"
    MATCHED = "matched"
    SPURIOUS = "unmatched"


COLOURS = {Mark.FOUND: "#8fd19e", Mark.MISSED: "#e5484d", Mark.MATCHED: "#1f6feb", Mark.SPURIOUS: "#f5a524"}


class Outline(NamedTuple):
    """One shape to draw."""

    shape: Shape
    label: str
    mark: Mark


def outlines(
    truths: Sequence[GroundTruth], predictions: Sequence[tuple[str, Shape]], pairs: Sequence[MatchedPair]
) -> list[Outline]:
    """What there is to draw, ground truth first. A matched prediction carries its maskIoU."""
    found = {pair.ground_truth for pair in pairs}
    ious = {pair.prediction: pair.mask_iou for pair in pairs}
    drawn = [
        Outline(truth.shape, "" if at in found else truth.desc, Mark.FOUND if at in found else Mark.MISSED)
        for at, truth in enumerate(truths)
    ]
    for at, (desc, shape) in enumerate(predictions):
        label, mark = (f"{desc} {ious[at]:.2f}", Mark.MATCHED) if at in ious else (desc, Mark.SPURIOUS)
        drawn.append(Outline(shape, label, mark))
    return drawn


def draw_rollout(trace: RolloutTrace, width: int) -> Image.Image:
    """A rollout's image with ground truth and predictions. OSError where it cannot be read."""
    predictions = [(each.desc, each.shape) for each in trace.predictions]
    return draw_sample(trace.record.images[0], outlines(trace.record.objects, predictions, trace.pairs), width=width)


def draw_sample(path: str | Path, drawn: Sequence[Outline], *, width: int = 640) -> Image.Image:
    """The image, `width` pixels wide, with every outline and a legend below. OSError where it cannot be read."""
    with Image.open(path, formats=IMAGE_FORMATS) as opened:
        image = opened.convert("RGB")
    image = image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.BICUBIC)
    page = Image.new("RGB", (width, image.height + _LEGEND_PX), "white")
    page.paste(image)
    painter = ImageDraw.Draw(page)
    for each in drawn:
        thick = 4 if each.mark in (Mark.FOUND, Mark.MISSED) else 2
        draw_shape(painter, each.shape, image.size, COLOURS[each.mark], thick)
    for each in drawn:
        ink = "black" if each.mark is Mark.SPURIOUS else "white"
        draw_label(painter, each.label, each.shape, image.size, COLOURS[each.mark], ink)
    _legend(painter, image.size)
    return page


def _points(shape: Shape, size: tuple[int, int]) -> list[tuple[float, float]]:
    """Corners in pixels; a box as its two corners, sorted."""
    flat = to_pixels(shape.bins, *size)
    points = list(zip(flat[0::2], flat[1::2], strict=True))
    if shape.geometry == "bbox_2d":
        (left, right), (top, bottom) = (sorted(values) for values in zip(*points, strict=True))
        return [(left, top), (right, bottom)]
    return points


def draw_shape(painter: ImageDraw.ImageDraw, shape: Shape, size: tuple[int, int], colour: str, thick: int) -> None:
    """The outline of a shape on an image of that size."""
    points = _points(shape, size)
    if shape.geometry == "bbox_2d":
        painter.rectangle((*points[0], *points[1]), outline=colour, width=thick)
    else:
        painter.polygon(points, outline=colour, width=thick)


def draw_label(
    painter: ImageDraw.ImageDraw, label: str, shape: Shape, size: tuple[int, int], paper: str, ink: str
) -> None:
    """A label at the highest corner of a shape, within the image."""
    if not label:
        return
    font = ImageFont.load_default(size=_FONT_PX)
    left, top = min(_points(shape, size), key=lambda point: (point[1], point[0]))
    box = painter.textbbox((left + 3, top + 2), label, font=font)
    shift = min(0.0, size[0] - 2 - box[2]), min(0.0, size[1] - 2 - box[3])
    place = (left + 3 + shift[0], top + 2 + shift[1])
    box = painter.textbbox(place, label, font=font)
    painter.rectangle((box[0] - 2, box[1] - 1, box[2] + 2, box[3] + 1), fill=paper)
    painter.text(place, label, fill=ink, font=font)


def _legend(painter: ImageDraw.ImageDraw, size: tuple[int, int]) -> None:
    left, font = 6.0, ImageFont.load_default(size=_FONT_PX)
    for mark in Mark:
        painter.rectangle((left, size[1] + 7, left + 10, size[1] + 17), fill=COLOURS[mark])
        painter.text((left + 14, size[1] + 5), mark, fill="#333333", font=font)
        left += 14 + painter.textlength(mark, font=font) + 14
