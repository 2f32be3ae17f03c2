"""One line of the JSONL data set as one `Record` (SPEC 2.1).

A line that cannot be a record is a `RecordError` that starts with `file:line:`; nothing later validates it again.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocol.contracts import GeometryType, GroundTruth, Record, Shape
from protocol.errors import RecordError
from protocol.serialization import GEOMETRIES, LONE_SURROGATE, Ordering, is_bin, sanitize_desc, sort_key
from protocol.vocab import coord_value

DATASET_SEED = 42
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""What is opened as an image, under PIL's names; some of its other readers start programs."""
DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
"""PIL's names for grey images of more than 8 bits, which are refused: as RGB, all above 255 would become white."""
MAX_IMAGE_PIXELS = 1 << 26
"""Largest image that is ever decoded: 65,536 image tokens, more than any model length. Bounds decompression bombs."""

_USE_IMPORT = "turn a COCO file into records with `rollmatch import-coco`"


def parse_record(
    line: str | bytes,
    *,
    index: int,
    source: str,
    root: Path,
    confined_to: str | None = None,
    ordering: Ordering = "sorted",
    seed: int = DATASET_SEED,
    epoch: int = 0,
) -> Record:
    """One line as a record, its objects in payload order.

    Args:
        source: `train.jsonl:18`, put before the error.
        root: folder that relative image paths count from.
        confined_to: folder that the image must lie in, symbolic links followed; None: anywhere.
        ordering: `random` shuffles by (seed, epoch, index), so that a rerun gives the same order.

    Raises:
        RecordError: names the field, what it holds and what is expected.
    """
    try:
        data = json.loads(line)
        if not isinstance(data, dict):
            raise ValueError(f"is a JSON {type(data).__name__}, expected an object; write one record per line")
        if isinstance(data.get("annotations"), list):
            raise ValueError(f"has a list `annotations`, as COCO files do; {_USE_IMPORT}")
        width, height = _side(data, "width"), _side(data, "height")
        if width * height > MAX_IMAGE_PIXELS:
            raise ValueError(f"width x height is {width}x{height}, the most is {MAX_IMAGE_PIXELS} pixels; shrink it")
        return Record(
            index=index,
            source=source,
            images=(_path(_image(data), root, confined_to),),
            width=width,
            height=height,
            objects=_objects(data, ordering, f"{seed}/{epoch}/{index}"),
        )
    except json.JSONDecodeError as error:
        advice = f"one record per line is expected; {_USE_IMPORT}" if line.strip() in ("{", b"{") else "mend the line"
        raise RecordError(f"{source}: is no JSON ({error.msg} at column {error.colno}); {advice}") from error
    except UnicodeDecodeError as error:
        raise RecordError(
            f"{source}: is no UTF-8 ({error.reason} at byte {error.start}); save the file as UTF-8"
        ) from error
    except ValueError as error:
        raise RecordError(f"{source}: {error}") from error


def _image(data: Mapping[str, Any]) -> str:
    images = data.get("images")
    if not isinstance(images, list) or not all(isinstance(image, str) and image for image in images):
        raise ValueError(f"images is {_brief(images)}, expected a list with one path; name the image")
    if len(images) != 1:
        raise ValueError(f"images has {len(images)} paths, expected 1; write one record per image")
    if LONE_SURROGATE.search(images[0]):
        raise ValueError(f"images[0] {images[0]!r} is no text; rename the file in UTF-8")
    return str(images[0])


def _path(image: str, root: Path, confined_to: str | None) -> str:
    path = str(root / image)
    if confined_to is not None:
        below = os.path.realpath(confined_to)
        if os.path.commonpath([below, os.path.realpath(path)]) != below:
            raise ValueError(f"images[0] is {image}, outside ROOT_IMAGE_DIR {confined_to}; move the image, or unset it")
    return path


def _side(data: Mapping[str, Any], name: str) -> int:
    size = data.get(name)
    if isinstance(size, bool) or not isinstance(size, int | float) or not 0 < size < 2**31 or size != int(size):
        raise ValueError(f"{name} is {_brief(size)}, expected a whole number > 0; write the image's {name} in pixels")
    return int(size)


def _objects(data: Mapping[str, Any], ordering: Ordering, key: str) -> tuple[GroundTruth, ...]:
    objects = data.get("objects")
    if not isinstance(objects, list):
        raise ValueError(f"objects is {_brief(objects)}, expected a list; write [] where the image shows none")
    found = [_object(item, f"objects[{at}]") for at, item in enumerate(objects)]
    if ordering == "sorted":
        found.sort(key=lambda pair: sort_key(pair[1].geometry, pair[1].bins))
    else:
        random.Random(key).shuffle(found)
    return tuple(GroundTruth(index=at, desc=desc, shape=shape) for at, (desc, shape) in enumerate(found, start=1))


def _object(item: object, where: str) -> tuple[str, Shape]:
    if not isinstance(item, dict):
        raise ValueError(f"{where} is {_brief(item)}, expected an object with desc and bbox_2d or poly")
    if item.get("line") is not None or item.get("line_points") is not None:
        raise ValueError(f"{where}.line is not supported; write bbox_2d or poly")
    try:
        desc = sanitize_desc(item.get("desc"))
    except ValueError as error:
        raise ValueError(f"{where}.{error}") from error
    geometry = next((name for name in GEOMETRIES if item.get(name) is not None), None)
    if geometry is None:
        raise ValueError(f"{where} has neither bbox_2d nor poly; add one, or remove the object")
    return desc, Shape(geometry, _bins(item[geometry], geometry, f"{where}.{geometry}"))


def _bins(values: object, geometry: GeometryType, where: str) -> tuple[int, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{where} is {_brief(values)}, expected a flat list of coordinate tokens or bins")
    if geometry == "bbox_2d" and len(values) != 4:
        raise ValueError(f"{where} has {len(values)} values, expected 4; write x1, y1, x2, y2")
    if geometry == "poly" and (len(values) < 6 or len(values) % 2):
        raise ValueError(f"{where} has {len(values)} values, expected an even number >= 6; write x, y, x, y, ...")
    return tuple(_bin(value, f"{where}[{at}]") for at, value in enumerate(values))


def _bin(value: object, where: str) -> int:
    if isinstance(value, str):
        try:
            return coord_value(value)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
    if not is_bin(value):
        raise ValueError(f"{where} is {_brief(value)}, expected a coordinate token or a whole number in 0..999")
    return round(value)


def _brief(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=repr) if value is not None else "missing"
    return text if len(text) <= 40 else f"{text[:40]}..."
