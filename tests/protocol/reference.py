"""The specification written down plainly and slowly, for comparison: one character, one pair, one matrix at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask
from scipy.optimize import linear_sum_assignment

from protocol.contracts import Shape
from protocol.matching import MatchSettings
from protocol.repeat_guard import RepeatReason, RepeatSettings
from protocol.vocab import TokenCodec

_KEY = re.compile(r"object_([0-9]+)")
_COORD = re.compile(r"<\|coord_([0-9]{1,4})\|>")


@dataclass
class ReferenceObject:
    key: str
    index: int
    start: int
    end: int = -1
    in_list: bool = False
    coords: list[int] = field(default_factory=list)


@dataclass
class ReferenceParse:
    """The comparable part of a parse."""

    response_ids: list[int]
    prefix_ids: list[int]
    prefix_text: str
    max_index: int | None
    valid: list[tuple[str, int, str, str, tuple[int, ...], tuple[int, ...]]]
    """key, index, desc, geometry, positions, bins."""
    dropped: int
    truncated: bool
    cut_fallback: bool


def _cut(ids: list[int], char: int, codec: TokenCodec) -> tuple[list[int], bool]:
    kept: list[int] = []
    at = 0
    for token_id in ids:
        piece = codec.piece(token_id)
        if at + len(piece) > char:
            if char == at:
                return kept, True
            part = piece[: char - at]
            encoded = codec.encode(part)
            fits = "".join(codec.piece(new) for new in encoded) == part
            return (kept + encoded, True) if fits else (kept, False)
        kept.append(token_id)
        at += len(piece)
    return kept, True


def reference_parse(ids: list[int], codec: TokenCodec) -> ReferenceParse:
    """SPEC 5 character by character, with A1, A3 and A4."""
    text = "".join(codec.piece(token_id) for token_id in ids)
    stop_fits = True
    if "<|im_end|>" in text:
        ids, stop_fits = _cut(ids, text.index("<|im_end|>"), codec)
        text = "".join(codec.piece(token_id) for token_id in ids)
    machine = _Machine(ids, codec, text)
    machine.run()
    if machine.top is None:
        return ReferenceParse(ids, codec.encode("{"), "{", None, [], 0, True, False)
    cut = machine.last_end if machine.last_end is not None else machine.top
    prefix, fits = _cut(ids, cut, codec)
    valid = [_validate(item, text, ids, codec) for item in machine.objects]
    dropped = sum(item is None for item in valid)
    if not (fits and stop_fits):
        return ReferenceParse(ids, codec.encode("{"), "{", None, [], dropped, machine.truncated, True)
    indices = [index for index, end in machine.keys if end <= cut]
    kept = [item for item in valid if item is not None]
    return ReferenceParse(ids, prefix, text[:cut], max(indices, default=None), kept, dropped, machine.truncated, False)


class _Machine:
    def __init__(self, ids: list[int], codec: TokenCodec, text: str) -> None:
        self.ids, self.codec, self.text = ids, codec, text
        self.depth = self.brackets = 0
        self.in_string = self.escape = False
        self.buffer = ""
        self.expecting: dict[int, bool] = {}
        self.last_key: str | None = None
        self.pending: tuple[str, int, int] | None = None
        self.current: ReferenceObject | None = None
        self.capture: int | None = None
        self.top: int | None = None
        self.last_end: int | None = None
        self.closed = False
        self.objects: list[ReferenceObject] = []
        self.keys: list[tuple[int, int]] = []
        self.truncated = True

    def run(self) -> None:
        at = 0
        for position, token_id in enumerate(self.ids):
            if self.capture is not None and token_id in self.codec.coord_bins and self.current is not None:
                self.current.coords.append(position)
            for char in self.codec.piece(token_id):
                self.step(char, at)
                at += 1
                if self.closed and self.depth == 0 and self.brackets == 0:
                    self.truncated = False
                    return
        self.truncated = self.top is None or self.depth != 0 or self.brackets != 0 or self.in_string

    def step(self, char: str, at: int) -> None:
        if self.in_string:
            if self.escape:
                self.escape = False
                self.buffer += char
            elif char == "\\":
                self.escape = True
                self.buffer += char
            elif char == '"':
                self.in_string = False
                self.string_end(at + 1)
            else:
                self.buffer += char
        elif char == '"':
            self.in_string, self.buffer = True, ""
        elif char == "{":
            self.open_brace(at)
        elif char == "}":
            if self.depth == 2 and self.current is not None:
                self.current.end = self.last_end = at + 1
                self.current = None
            self.depth = max(0, self.depth - 1)
            self.closed = self.closed or (self.depth == 0 and self.top is not None)
        elif char == "[":
            self.open_bracket()
        elif char == "]":
            self.brackets = max(0, self.brackets - 1)
            if self.capture is not None and self.brackets <= self.capture:
                self.capture = None
        elif char == "," and self.brackets == 0:
            self.expecting[self.depth] = True
            if self.depth == 1:
                self.pending = None
        elif char == ":" and self.brackets == 0:
            self.expecting[self.depth] = False

    def string_end(self, end: int) -> None:
        if not self.expecting.get(self.depth, False) or self.brackets:
            return
        self.last_key = self.buffer
        if self.depth != 1 or self.closed:
            return
        plain = _KEY.fullmatch(self.buffer)
        if plain is not None:
            self.pending = (self.buffer, int(plain[1]), end)
        try:
            spelt = _KEY.fullmatch(json.loads(f'"{self.buffer}"'))
        except ValueError:
            spelt = plain
        if plain is not None or spelt is not None:
            self.keys.append((int((plain or spelt)[1]), end))  # type: ignore[index]

    def open_brace(self, at: int) -> None:
        self.depth += 1
        self.expecting[self.depth] = True
        if self.depth == 1 and self.top is None:
            self.top = at + 1
        elif self.depth == 2 and not self.closed:
            self.current = None
            if self.pending is not None:
                key, index, end = self.pending
                between = re.sub(r"[\s:]", "", self.text[end:at])
                item = ReferenceObject(key, index, at)
                if not between:
                    self.current = item
                    self.objects.append(item)
                elif between.startswith("["):
                    item.in_list = True
                    self.objects.append(item)
            self.pending = self.last_key = self.capture = None

    def open_bracket(self) -> None:
        if (
            self.depth == 2
            and self.current is not None
            and self.last_key in ("bbox_2d", "poly")
            and self.capture is None
        ):
            self.capture = self.brackets
        self.brackets += 1


def _validate(item: ReferenceObject, text: str, ids: list[int], codec: TokenCodec) -> Any:
    """SPEC 5.4; None when invalid."""
    if item.end < 0 or item.in_list:
        return None
    try:
        value = json.loads(text[item.start : item.end])
    except (ValueError, RecursionError):
        return None
    desc = value.get("desc")
    if not isinstance(desc, str) or not desc.strip():
        return None
    present = [name for name in ("bbox_2d", "poly") if name in value]
    if len(present) != 1 or set(value) - {"desc", "bbox_2d", "poly"}:
        return None
    geometry = value[present[0]]
    if not isinstance(geometry, list):
        return None
    flat: list[Any] = []
    if geometry and all(isinstance(part, list) for part in geometry):
        if any(len(part) != 2 for part in geometry):
            return None
        for part in geometry:
            flat += part
    else:
        flat = geometry
    for part in flat:
        match = _COORD.fullmatch(part) if isinstance(part, str) else None
        if match is None or int(match[1]) > 999:
            return None
    count = len(item.coords)
    arity = count == 4 if present[0] == "bbox_2d" else count >= 6 and count % 2 == 0
    if not arity or count != len(flat):
        return None
    bins = tuple(codec.coord_bins[ids[position]] for position in item.coords)
    shown = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in desc.strip())
    return item.key, item.index, shown, present[0], tuple(item.coords), bins


def _ring(shape: Shape) -> list[float]:
    clamped = [min(999.0, max(0.0, float(value))) for value in shape.bins]
    if shape.geometry == "poly":
        return clamped
    x1, x2 = sorted(clamped[0::2])
    y1, y2 = sorted(clamped[1::2])
    return [x1, y1, x2, y1, x2, y2, x1, y2]


def raster(shape: Shape, resolution: int) -> Any:
    """The shape as pycocotools draws it."""
    return mask.frPyObjects([[value * (resolution / 1000) for value in _ring(shape)]], resolution, resolution)[0]


def reference_mask_iou(a: Shape, b: Shape, resolution: int) -> float | None:
    """SPEC 7; None where a raster is empty and A6 takes over."""
    drawn = [raster(a, resolution), raster(b, resolution)]
    if 0 in mask.area(drawn).tolist():
        return None
    return float(mask.iou(drawn[:1], drawn[1:], [0])[0, 0])


def _bounds(shape: Shape) -> tuple[float, float, float, float]:
    ring = _ring(shape)
    return min(ring[0::2]), min(ring[1::2]), max(ring[0::2]), max(ring[1::2])


def _bounds_iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


def reference_match(
    predictions: list[Shape], truths: list[Shape], settings: MatchSettings, ious: Any
) -> tuple[list[tuple[int, int]], int, float]:
    """Pairs, gating rejections and the least cost; `ious(i, j)` is the mask IoU of a pair."""
    if not (predictions and truths):
        return [], 0, settings.fp_cost * len(predictions) + settings.fn_cost * len(truths)
    costs = np.full((len(predictions), len(truths)), 1e6)
    rejected = 0
    truth_bounds = [_bounds(shape) for shape in truths]
    for i, shape in enumerate(predictions):
        bounds = _bounds(shape)
        overlaps = [_bounds_iou(bounds, other) for other in truth_bounds]
        if max(overlaps) > 0:
            order = sorted(range(len(truths)), key=lambda j: (-overlaps[j], j))
        else:
            centre = [(bounds[k] + bounds[k + 2]) / 2 for k in (0, 1)]
            gaps = [sum((centre[k] - (other[k] + other[k + 2]) / 2) ** 2 for k in (0, 1)) for other in truth_bounds]
            order = sorted(range(len(truths)), key=lambda j: (gaps[j], j))
        for j in order[: max(1, settings.candidate_top_k)]:
            iou = ious(i, j)
            if iou < settings.maskiou_gate:
                rejected += 1
            else:
                costs[i, j] = 1.0 - iou
    size = len(predictions) + len(truths)
    square = np.zeros((size, size))
    square[: len(predictions), : len(truths)] = costs
    square[: len(predictions), len(truths) :] = settings.fp_cost
    square[len(predictions) :, : len(truths)] = settings.fn_cost
    rows, columns = linear_sum_assignment(square)
    pairs = [
        (int(i), int(j))
        for i, j in zip(rows, columns, strict=True)
        if i < len(predictions) and j < len(truths) and costs[i, j] < 5e5
    ]
    return pairs, rejected, float(square[rows, columns].sum())


def reference_verdict(
    token_ids: Sequence[int], prompt_len: int, num_object_keys: int, settings: RepeatSettings
) -> RepeatReason | None:
    """Why the row must end now, or None (SPEC 4.3); `RepeatGuard` finds the same token by token.

    Args:
        token_ids: prompt and generated tokens; a run of equal tokens may reach back into the prompt.
        prompt_len: tokens of the prompt, padding included.
        num_object_keys: keys in the generated text so far.
    """
    num_new = len(token_ids) - prompt_len
    if num_new < settings.min_new_tokens:
        return None
    if settings.max_object_keys is not None and num_object_keys >= settings.max_object_keys:
        return RepeatReason.OBJECT_KEYS
    run = settings.max_consecutive_token_repeats
    if 0 < run <= len(token_ids) and len(set(token_ids[-run:])) == 1:
        return RepeatReason.TOKEN_RUN
    size, repeats = settings.ngram_size, settings.ngram_repeats
    if size > 0 and repeats >= 2 and num_new >= size * repeats:
        tail = list(token_ids[-size * repeats :])
        if tail == tail[:size] * repeats:
            return RepeatReason.NGRAM
    return None


def check_insert(buffered: Sequence[int], new: Sequence[int], *, capacity: int, packing_buffer: int) -> None:
    """Whether `new` lengths may join a rank's buffer (SPEC 13); the caller changes nothing when this raises.

    `packing_buffer` 0 means unlimited here. Raises ValueError for a length above `capacity` and for an overflow.
    """
    if capacity <= 0:
        raise ValueError(f"packing: capacity must be > 0 tokens, got {capacity}; set global_max_length")
    longest = max(new, default=0)
    if longest > capacity:
        raise ValueError(
            f"packing: a segment has {longest} tokens, the capacity is {capacity}; the rollout side quarantines it "
            "(SPEC A5), or raise global_max_length"
        )
    total = len(buffered) + len(new)
    if 0 < packing_buffer < total:
        raise ValueError(
            f"training.packing_buffer: {len(buffered)} segments and {len(new)} new ones exceed {packing_buffer}; raise "
            "it, or lower per_device_train_batch_size so that packs keep up with what is inserted"
        )
