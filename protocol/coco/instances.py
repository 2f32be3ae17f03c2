"""COCO and LVIS instance files as they are on disk."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocol.coco.json_stream import JsonStream, open_json
from protocol.coco.rules import Rule
from protocol.errors import RecordError
from protocol.serialization import clean_desc, sanitize_desc

KEPT = {
    "images": ("id", "file_name", "coco_url", "width", "height", "not_exhaustive_category_ids"),
    "annotations": ("image_id", "category_id", "iscrowd", "bbox", "segmentation"),
    "categories": ("id", "name"),
}
"""The lists that an import needs, and what it reads of their entries."""
_NUMBERS = {int, float}


def load_instances(path: Path, *, boxes_only: bool) -> dict[str, Any]:
    """The lists of `KEPT`, coordinates as float64 arrays, which are a quarter the size of Python's numbers.

    `boxes_only`: without the segmentation of what has a bbox. RecordError where it is no instance file.
    """
    try:
        with open_json(path) as file:
            stream = JsonStream(file)
            data = _lists(stream, boxes_only) if stream.peek() == "{" else stream.value()
            stream.end()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    except UnicodeDecodeError as error:  # its place is one in the piece that was read
        byte = f"byte 0x{error.object[error.start]:02x}: {error.reason}"
        raise RecordError(f"{path}: is no text in {error.encoding} ({byte}); save it in UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{path}: is no JSON ({error}); name an instance file") from error
    for key in KEPT:
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise RecordError(f"{path}: has no list `{key}`; name a COCO or LVIS instance file")
        for at, entry in enumerate(data[key]):
            if not isinstance(entry, dict) or (key != "annotations" and "id" not in entry):
                raise RecordError(f"{path}: {key}[{at}] is no object with an id; correct the file")
    return dict(data)


def group_by_image(data: Mapping[str, Any], counts: Counter[Rule]) -> dict[Any, list[Mapping[str, Any]]]:
    """Annotations by image id, in file order."""
    by_image: dict[Any, list[Mapping[str, Any]]] = {image["id"]: [] for image in data["images"]}
    for annotation in data["annotations"]:
        members = by_image.get(annotation.get("image_id"))
        if members is None:
            counts[Rule.UNKNOWN_IMAGE] += 1
        else:
            members.append(annotation)
    return by_image


def category_descs(data: Mapping[str, Any], source: str | Path) -> dict[Any, str]:
    """Category id → description: the name with `_` as space, freed of what the canonical text cannot hold."""
    try:
        return {entry["id"]: sanitize_desc(clean_desc(entry["name"].replace("_", " "))) for entry in data["categories"]}
    except (KeyError, AttributeError, ValueError) as error:
        raise RecordError(f"{source}: a category needs an id and a name ({error}); complete `categories`") from error


def _lists(stream: JsonStream, boxes_only: bool) -> dict[str, Any]:
    """What the file has under the names of `KEPT`; the rest is read over."""
    data: dict[str, Any] = {}
    for key in stream.members():
        if key in KEPT and stream.peek() == "[":
            data[key] = [_entry(entry, KEPT[key], boxes_only) for entry in stream.elements()]
        else:
            stream.value()
            data.pop(key, None)  # a name that comes twice stands for its last value
    return data


def _entry(entry: Any, names: tuple[str, ...], boxes_only: bool) -> Any:
    """An object of a list without what no rule reads; anything else as it is."""
    if not isinstance(entry, dict):
        return entry
    kept = {name: entry[name] for name in names if name in entry}
    if kept.get("bbox") is not None:
        kept["bbox"] = _packed(kept["bbox"])
        if boxes_only:
            kept.pop("segmentation", None)
    if isinstance(kept.get("segmentation"), list):
        kept["segmentation"] = [_packed(part) for part in kept["segmentation"]]
    return kept


def _packed(values: Any) -> Any:
    """A list of numbers as an array; what holds anything else as it is, for the rule that drops it."""
    if not isinstance(values, list) or not set(map(type, values)) <= _NUMBERS:
        return values
    try:
        return array("d", values)
    except OverflowError:  # an integer beyond float64
        return values
