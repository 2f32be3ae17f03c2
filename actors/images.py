"""The image of a request, read once, as the engine will see it."""

from __future__ import annotations

from PIL import Image, UnidentifiedImageError

from protocol.contracts import RolloutRequest
from protocol.errors import ImageError


def open_image(request: RolloutRequest) -> Image.Image:
    """The request's image as RGB; ImageError that names the record when it cannot be what the record says."""
    record = request.record
    path = record.images[0]
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        message = f"{record.source}: cannot read image {path} ({error}); restore it or drop the record"
        raise ImageError(message) from error
    if image.size != (record.width, record.height):
        raise ImageError(
            f"{record.source}: image {path} is {image.width}x{image.height}, the record says "
            f"{record.width}x{record.height}; write the record with the size of the file"
        )
    return image
