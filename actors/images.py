"""The image of a request, read once, as the engine will see it."""

from __future__ import annotations

import time
from collections.abc import Callable

from PIL import Image

from protocol.contracts import Record, RolloutRequest
from protocol.errors import ImageError
from protocol.patience import patiently
from protocol.record_lines import DEEP_MODES, IMAGE_FORMATS


def open_image(
    request: RolloutRequest, max_pixels: int | None = None, pause: Callable[[float], None] = time.sleep
) -> Image.Image:
    """The request's image as RGB; ImageError that names the record when it cannot be what the record says, or has more
    than `max_pixels`.

    `pause` as `patiently` takes it.
    """
    record = request.record
    num_pixels = record.width * record.height
    if max_pixels is not None and num_pixels > max_pixels:
        raise ImageError(
            f"{record.source}: image {record.images[0]} is {record.width}x{record.height}, {num_pixels} pixels, "
            f"template.max_pixels is {max_pixels}; shrink it, or raise the limit"
        )
    try:
        return patiently(lambda: _read(record), pause)
    except ImageError:
        raise
    except Exception as error:  # a broken file makes Pillow raise almost anything
        path = record.images[0]
        message = f"{record.source}: cannot read image {path} ({error}); restore it or drop the record"
        raise ImageError(message) from error


def _read(record: Record) -> Image.Image:
    with Image.open(record.images[0], formats=IMAGE_FORMATS) as file:
        if file.mode in DEEP_MODES:
            raise OSError(f"grey of {file.mode}, more than 8 bits; convert it as its values need it")
        if file.size == (record.width, record.height):
            return file.convert("RGB")  # decodes, so only what the record has announced
        width, height = file.size
    raise ImageError(
        f"{record.source}: image {record.images[0]} is {width}x{height}, the record says "
        f"{record.width}x{record.height}; write the record with the size of the file"
    )
