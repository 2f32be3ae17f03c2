"""The data's part of `rollmatch check`: lines and image headers of the training and the evaluation file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from deploy.findings import Finding, Findings, Severity, error, note, warning
from protocol.config import RunConfig
from protocol.contracts import Record
from protocol.errors import RecordError
from protocol.record_lines import DEEP_MODES, IMAGE_FORMATS
from protocol.records import RecordFile

MAX_LINES = 10_000
"""Lines that are read per file; the rest is only counted."""
SHOWN = 20
"""Broken lines and images that are named per file."""


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
    findings: list[Finding] = []
    if custom.train_jsonl is not None:
        findings += _check_file(config, "custom.train_jsonl", custom.train_jsonl, custom.train_sample_limit, rules)
    if custom.val_jsonl is not None:
        limit = None if custom.val_sample_with_replacement else custom.val_sample_limit
        findings += _check_file(config, "custom.val_jsonl", custom.val_jsonl, limit, rules)
        if custom.train_jsonl and os.path.realpath(custom.train_jsonl) == os.path.realpath(custom.val_jsonl):
            findings.append(
                warning("custom.val_jsonl", "is the training file: the evaluation says nothing about new images")
            )
    return findings


def _check_file(config: RunConfig, path: str, file: str, limit: int | None, rules: ImageRules) -> Iterator[Finding]:
    try:
        records = RecordFile(file, limit=limit)
    except RecordError as raised:
        yield error(path, str(raised))
        return
    looked_at = min(len(records), MAX_LINES)
    yield note(path, f"{len(records)} records in {file}, lines and images 1..{looked_at} were checked")
    lines, images, boxes = Findings(SHOWN), Findings(SHOWN), Findings(SHOWN)
    lengths, num_long = {severity: Findings(1) for severity in Severity}, 0
    for index in range(looked_at):
        try:
            record = records[index]
        except RecordError as raised:
            where, _, message = str(raised).partition(": ")
            lines.add(error(where, message))
            continue
        problem = _image_problem(record, config.template.max_pixels) or rules.problem(record.width, record.height)
        if problem is not None:
            images.add(error(record.source, f"{record.images[0]} {problem}"))
        elif (finding := _length(record, config, rules)) is not None:
            lengths[finding.severity].add(finding)
        num_long += sum(_least_tokens(record, rules)) > config.global_max_length
        for finding in _turned(record):
            boxes.add(finding)
    for findings in (lines, images, boxes, *lengths.values()):
        yield from findings.folded(path)
    if (
        path == "custom.train_jsonl"
        and config.num_optimizer_steps(len(records)) == 0
        and config.training.max_steps != 0
    ):
        yield error(
            path,
            f"{len(records)} records fill no window of training.effective_batch_size "
            f"{config.training.effective_batch_size}, so there would be no step; lower the batch size",
        )
    if path == "custom.train_jsonl" and num_long == looked_at:
        yield error(
            "global_max_length", f"is {config.global_max_length}, and no record of {file} is that short; raise it"
        )


def _image_problem(record: Record, max_pixels: int | None) -> str | None:
    """Reads the image's header only."""
    path = Path(record.images[0])
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            size, mode = image.size, image.mode
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


def _turned(record: Record) -> Iterator[Finding]:
    """Boxes whose corners are the wrong way round: the mask is right, the text that is trained is not."""
    for truth in record.objects:
        x1, y1, x2, y2 = truth.shape.bins[:4]
        if truth.shape.geometry == "bbox_2d" and (x1 > x2 or y1 > y2):
            message = f"bbox_2d {truth.shape.bins} of {truth.desc!r} is no x1, y1, x2, y2; swap its corners"
            yield warning(record.source, message)


def _least_tokens(record: Record, rules: ImageRules) -> tuple[int, int]:
    """Lower bounds of prompt and answer: the image's tokens, and one token per coordinate."""
    image = rules.num_tokens(record.width, record.height)
    return image, sum(len(truth.shape.bins) for truth in record.objects)


def _length(record: Record, config: RunConfig, rules: ImageRules) -> Finding | None:
    image, answer = _least_tokens(record, rules)
    limit = config.matching.vllm.max_model_len if config.matching.rollout_backend == "vllm" else 0
    if limit and image >= limit:
        return error(
            record.source,
            f"the image alone costs {image} tokens, vllm.max_model_len is {limit}; raise it, or shrink the image",
        )
    if image + answer > config.global_max_length:
        return warning(
            record.source,
            f"image and coordinates alone cost {image + answer} tokens, more than global_max_length "
            f"{config.global_max_length}: the record would be dropped and counted; raise the length",
        )
    if answer > config.matching.max_new_tokens:
        return warning(
            record.source,
            f"the answer needs at least {answer} tokens, more than max_new_tokens {config.matching.max_new_tokens}: "
            "no rollout can be complete; raise custom.extra.rollout_matching.max_new_tokens",
        )
    return None
