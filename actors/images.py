"""The image of a request, read once, as the engine will see it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from PIL import Image

from protocol.contracts import Record, RolloutRequest
from protocol.errors import ImageError
from protocol.record_lines import DEEP_MODES, IMAGE_FORMATS

T = TypeVar("T")
TRIES = 3
PAUSE_S = 1.0
"""Between two tries: a file server that fails over."""


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


def patiently(read: Callable[[], T], pause: Callable[[float], None] = time.sleep) -> T:
    """What `read` returns. What the system says of a file that is there (ESTALE, EIO, EMFILE) may pass, and is tried
    again; `pause` waits."""
    for tries_left in reversed(range(TRIES)):
        try:
            return read()
        except OSError as error:
            if not tries_left or not _may_pass(error):
                raise
        pause(PAUSE_S)
    raise AssertionError("the last try returns or raises")


def _may_pass(error: OSError) -> bool:
    """Pillow's own errors carry no number."""
    return error.errno is not None and not isinstance(error, FileNotFoundError)


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
