"""COCO and LVIS instance files as they are on disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocol.coco.rules import Rule
from protocol.errors import RecordError
from protocol.serialization import clean_desc, sanitize_desc


def load_instances(path: Path) -> dict[str, Any]:
    """The file as a whole, with the lists that an import needs. RecordError where it is no instance file."""
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise RecordError(f"{path}: cannot be read ({error.strerror}); correct the path") from error
    except ValueError as error:
        raise RecordError(f"{path}: is no JSON ({error}); name an instance file") from error
    for key in ("images", "annotations", "categories"):
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
