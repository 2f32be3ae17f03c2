"""The data's part of `rollmatch check`: lines and images of the training and the evaluation file."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from actors.images import open_image
from deploy.check_lengths import FileLengths, TokenCounter, token_counter
from deploy.check_saving import check_saving
from deploy.findings import Finding, Findings, error, note, warning
from deploy.progress import counted
from protocol.config import RunConfig
from protocol.contracts import Record, RequestKey, RolloutRequest
from protocol.errors import ImageError, RecordError
from protocol.patience import patiently
from protocol.record_lines import DEEP_MODES, IMAGE_FORMATS
from protocol.records import RecordFile
from protocol.vocab import NUM_BINS

MAX_LINES = 10_000
"""Lines that are read per file; the rest is only counted."""
DECODED = 32
"""Images per file that are decoded, from all over it; of the others the header is read."""
OPENERS = 16
"""Threads that read headers: opening a file on a file server takes milliseconds, and a start waits for all of them."""
AHEAD = 4 * OPENERS
"""Records that are read before the header of the first of them is there, at most."""
SHOWN = 20
"""Broken lines and images that are named per file."""
_ENOUGH = 20
"""Records with objects from which it is no chance that all coordinates lie within the sides in pixels."""


class ImageRules(NamedTuple):
    """What the model's image processor takes without resizing."""

    multiple: int
    """Pixels per image token side; both sides must be multiples."""
    min_pixels: int | None
    max_pixels: int | None
    """Bounds beyond which the processor would resize; None: it never does."""

    def problem(self, width: int, height: int) -> str | None:
        """Why an image of this size would be refused or resized."""
        if width % self.multiple or height % self.multiple:
            return (
                f"has {width}x{height} pixels, expected multiples of {self.multiple}; resize it once, before training"
            )
        pixels = width * height
        if self.max_pixels is not None and pixels > self.max_pixels:
            return f"has {pixels} pixels, the processor shrinks above {self.max_pixels}; set do_resize: false"
        if self.min_pixels is not None and pixels < self.min_pixels:
            return f"has {pixels} pixels, the processor enlarges below {self.min_pixels}; set do_resize: false"
        return None

    def num_tokens(self, width: int, height: int) -> int:
        """Tokens that an image costs in the prompt."""
        return (width // self.multiple) * (height // self.multiple)


def check_data(config: RunConfig, rules: ImageRules) -> list[Finding]:
    """Both files; the number of records against the schedule."""
    custom = config.custom
    counter, findings = token_counter(config)
    if custom.train_jsonl is not None:
        findings += _check_file(
            config, "custom.train_jsonl", custom.train_jsonl, custom.train_sample_limit, rules, counter
        )
    if custom.val_jsonl is not None:
        limit = None if custom.val_sample_with_replacement else custom.val_sample_limit
        findings += _check_file(config, "custom.val_jsonl", custom.val_jsonl, limit, rules, counter)
        if custom.train_jsonl and os.path.realpath(custom.train_jsonl) == os.path.realpath(custom.val_jsonl):
            findings.append(
                warning("custom.val_jsonl", "is the training file: the evaluation says nothing about new images")
            )
    return findings


def _check_file(
    config: RunConfig, path: str, file: str, limit: int | None, rules: ImageRules, counter: TokenCounter
) -> Iterator[Finding]:
    try:
        records = RecordFile(file, limit=limit)
    except RecordError as raised:
        yield error(path, str(raised))
        return
    looked_at = min(len(records), MAX_LINES)
    lines, boxes, images = Findings(SHOWN), Findings(SHOWN), _Images(config, rules, looked_at)
    lengths, contents = FileLengths(config, path, file, len(records), counter), _Contents()
    rows = counted(range(looked_at), f"checking the images of {file}")
    for record, is_taken in images.look_at(_readable(records, rows, lines)):
        contents.add(record)
        for finding in _turned(record):
            boxes.add(finding)
        if is_taken:
            lengths.add(record, rules.num_tokens(record.width, record.height))
    yield note(
        path,
        f"{len(records)} records in {file}; lines and image headers 1..{looked_at} were checked, with "
        f"{contents.num_objects} objects, and {images.num_decoded} of the images were decoded",
    )
    for findings in (lines, images.findings, boxes):
        yield from findings.folded(path)
    yield from contents.findings(path)
    yield from lengths.findings()
    if path == "custom.train_jsonl":
        yield from _schedule(config, path, len(records))
        yield from check_saving(config, len(records))


def _readable(records: RecordFile, rows: Iterable[int], lines: Findings) -> Iterator[Record]:
    """The records of these rows; a line that is none is a finding."""
    for row in rows:
        try:
            yield records[row]
        except RecordError as raised:
            where, _, message = str(raised).partition(": ")
            lines.add(error(where, message))


def _schedule(config: RunConfig, path: str, num_records: int) -> Iterator[Finding]:
    if config.num_optimizer_steps(num_records) == 0 and config.training.max_steps != 0:
        yield error(
            path,
            f"{num_records} records fill no window of training.effective_batch_size "
            f"{config.training.effective_batch_size}, so there would be no step; lower the batch size",
        )


class _Images:
    """Looks at the images of a file: at each one's header, and of some, from all over it, at the whole."""

    def __init__(self, config: RunConfig, rules: ImageRules, num_records: int) -> None:
        self._max_pixels = config.template.max_pixels
        self._rules = rules
        self._sample = {step * num_records // DECODED for step in range(DECODED)}
        self.findings = Findings(SHOWN)
        self.num_decoded = 0
        self._num_broken = 0

    def look_at(self, records: Iterable[Record]) -> Iterator[tuple[Record, bool]]:
        """The records, in their order, each with whether its image has a size that the model takes."""
        waiting: deque[tuple[Record, Future[str | None]]] = deque()
        with ThreadPoolExecutor(OPENERS) as openers:
            for record in records:
                waiting.append((record, openers.submit(self._problem, record)))
                if len(waiting) == AHEAD:
                    yield self._judged(*waiting.popleft())
            while waiting:
                yield self._judged(*waiting.popleft())

    def _problem(self, record: Record) -> str | None:
        is_patient = self._num_broken < SHOWN  # else a disk that fails costs 20 minutes a file of records
        problem = _image_problem(record, self._max_pixels, is_patient=is_patient)
        return problem or self._rules.problem(record.width, record.height)

    def _judged(self, record: Record, header: Future[str | None]) -> tuple[Record, bool]:
        problem = header.result()
        if problem is not None:
            self._num_broken += 1
            self.findings.add(error(record.source, f"{record.images[0]} {problem}"))
        elif record.index in self._sample:
            self._decode(record)
        return record, problem is None

    def _decode(self, record: Record) -> None:
        """Reads the image as an actor does: a file that is cut off has a good header."""
        self.num_decoded += 1
        try:
            open_image(RolloutRequest(key=RequestKey(record.index), record=record, seed=0))
        except ImageError as raised:
            where, _, message = str(raised).partition(": ")
            self.findings.add(error(where, message))


def _image_problem(record: Record, max_pixels: int | None, *, is_patient: bool) -> str | None:
    """Reads the image's header only; again, where that may pass and `is_patient`, as an actor does."""
    path = Path(record.images[0])
    try:
        size, mode = patiently(lambda: _header(path)) if is_patient else _header(path)
    except FileNotFoundError:
        return "is missing; correct the path, relative ones count from the JSONL's folder"
    except Exception as raised:  # a broken file makes Pillow raise almost anything
        return f"cannot be read ({raised}); replace the file"
    if mode in DEEP_MODES:
        return f"is grey with more than 8 bits ({mode}), of which RGB would keep 8; convert it as its values need it"
    if size != (record.width, record.height):
        return f"has {size[0]}x{size[1]} pixels, the record says {record.width}x{record.height}; correct one of them"
    if max_pixels is not None and size[0] * size[1] > max_pixels:
        return (
            f"has {size[0] * size[1]} pixels, more than template.max_pixels {max_pixels}; shrink it, or raise the limit"
        )
    return None


def _header(path: Path) -> tuple[tuple[int, int], str]:
    """Size in pixels, and mode."""
    with Image.open(path, formats=IMAGE_FORMATS) as image:
        return image.size, image.mode


def _turned(record: Record) -> Iterator[Finding]:
    """Boxes whose corners are the wrong way round: the mask is right, the text that is trained is not."""
    for truth in record.objects:
        x1, y1, x2, y2 = truth.shape.bins[:4]
        if truth.shape.geometry == "bbox_2d" and (x1 > x2 or y1 > y2):
            message = f"bbox_2d {truth.shape.bins} of {truth.desc!r} is no x1, y1, x2, y2; swap its corners"
            yield warning(record.source, message)


class _Contents:
    """What the records of a file hold."""

    def __init__(self) -> None:
        self.num_objects = 0
        self._num_records = 0
        self._num_marked = 0
        """Records with objects."""
        self._num_within = 0
        """Of these, those whose coordinates could be pixels of their own image, where they could be told from bins."""

    def add(self, record: Record) -> None:
        self._num_records += 1
        self.num_objects += len(record.objects)
        if record.objects:
            self._num_marked += 1
            right, lower = (max(max(truth.shape.bins[axis::2]) for truth in record.objects) for axis in (0, 1))
            self._num_within += right <= record.width < NUM_BINS - 1 and lower <= record.height < NUM_BINS - 1

    def findings(self, path: str) -> Iterator[Finding]:
        if self._num_records and not self.num_objects:
            text = (
                f"none of {self._num_records} records has an object, so every answer would be {{}}; write the objects"
            )
            yield warning(path, text)
        if self._num_marked >= _ENOUGH and self._num_within == self._num_marked:
            yield warning(
                path,
                f"in none of {self._num_marked} records with objects does a coordinate exceed its image's sides: "
                "are these pixels? They are read as 0..999 of the image's sides; convert them",
            )
