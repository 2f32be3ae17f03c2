"""Writes records of an import, one JSONL per split; a file appears under its name only when it is complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from protocol.contracts import Shape
from protocol.serialization import sort_key
from protocol.vocab import coord_token


class RecordWriter:
    """A context: on a clean exit the files are renamed into place. After an error, or where no record was written,
    none of them is left and those of an earlier import stay."""

    def __init__(self, out: Path, splits: Mapping[str, float], seed: int) -> None:
        self._seed = seed
        self._shares = dict(splits) or {"": 1.0}
        self._paths = {name: out.with_name(f"{out.stem}_{name}{out.suffix}") if name else out for name in self._shares}
        self._files: dict[str, TextIO] = {}
        self._sizes: dict[str, list[int]] = {name: [] for name in self._shares}
        self.geometries: Counter[str] = Counter()
        self.descs: Counter[str] = Counter()

    def __enter__(self) -> RecordWriter:
        for name, path in self._paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._files[name] = open(_partial(path), "w", encoding="utf-8")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        is_good = kind is None and any(self._sizes.values())
        for name, file in self._files.items():
            file.close()
            path = self._paths[name]
            if is_good:
                _partial(path).replace(path)
            else:
                _partial(path).unlink(missing_ok=True)

    def write(self, image: tuple[Path, int, int], objects: Sequence[tuple[str, Shape]]) -> None:
        """One record; objects are put in canonical order (SPEC 2.4)."""
        path, width, height = image
        split = self._split_of(path.name)
        ordered = sorted(objects, key=lambda item: sort_key(item[1].geometry, item[1].bins))
        record = {
            "images": [_relative(path, self._paths[split].parent)],
            "width": width,
            "height": height,
            "objects": [_entry(desc, shape) for desc, shape in ordered],
        }
        self._files[split].write(json.dumps(record, ensure_ascii=False) + "\n")
        self._sizes[split].append(len(ordered))
        self.geometries.update(shape.geometry for _, shape in ordered)
        self.descs.update(desc for desc, _ in ordered)

    def _split_of(self, name: str) -> str:
        digest = hashlib.sha256(f"{self._seed}:{name}".encode()).digest()
        position = int.from_bytes(digest[:8], "big") / 2**64
        for split, share in self._shares.items():
            position -= share
            if position < 0:
                return split
        return next(reversed(self._shares))

    def written(self) -> dict[str, tuple[int, int]]:
        """Path → (records, objects)."""
        return {str(self._paths[name]): (len(sizes), sum(sizes)) for name, sizes in self._sizes.items()}

    def objects_per_image(self) -> tuple[int, float, int]:
        """Minimum, mean, maximum; zeros where nothing was written."""
        sizes = [size for sizes in self._sizes.values() for size in sizes]
        return (min(sizes), sum(sizes) / len(sizes), max(sizes)) if sizes else (0, 0.0, 0)


def _entry(desc: str, shape: Shape) -> dict[str, Any]:
    entry: dict[str, Any] = {shape.geometry: [coord_token(bin_) for bin_ in shape.bins]}
    if shape.geometry == "poly":
        entry["poly_points"] = len(shape.bins) // 2
    return {**entry, "desc": desc}


def _relative(image: Path, folder: Path) -> str:
    """Relative to the JSONL, so that both can be moved together; absolute where there is no such path (another
    drive)."""
    real = os.path.realpath(image)
    with contextlib.suppress(ValueError):
        relative = os.path.relpath(image.absolute(), folder.absolute())
        if os.path.realpath(folder / relative) == real:
            return relative
        return os.path.relpath(real, os.path.realpath(folder))  # `..` leaves a linked folder for where the link leads
    return real


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")
