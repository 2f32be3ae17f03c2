"""The image of a request, read once, as the engine will see it."""

from __future__ import annotations

from PIL import Image

from protocol.contracts import RolloutRequest
from protocol.errors import ImageError
from protocol.record_lines import DEEP_MODES, IMAGE_FORMATS


def open_image(request: RolloutRequest) -> Image.Image:
    """The request's image as RGB; ImageError that names the record when it cannot be what the record says."""
    record = request.record
    path = record.images[0]
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as file:
            if file.mode in DEEP_MODES:
                raise OSError(f"grey of {file.mode}, more than 8 bits; convert it as its values need it")
            if file.size == (record.width, record.height):
                return file.convert("RGB")  # decodes, so only what the record has announced
            width, height = file.size
    except Exception as error:  # a broken file makes Pillow raise almost anything
        message = f"{record.source}: cannot read image {path} ({error}); restore it or drop the record"
        raise ImageError(message) from error
    raise ImageError(
        f"{record.source}: image {path} is {width}x{height}, the record says "
        f"{record.width}x{record.height}; write the record with the size of the file"
    )
