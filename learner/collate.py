"""Segments into the tensors of one forward: one padding-free row, or right-padded rows.

A packed row needs four rows of position ids: the text row restarts at 0 with every segment, and this is what isolates
the segments from each other in attention; three rows hold the rotary positions, computed for each segment alone. With
three rows only, segments would see each other silently (SPEC 12, part C).

Legend of shape suffixes: B rows, T tokens of a row, N cross-entropy targets, C coordinate targets, P patches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from protocol.contracts import IntArray, RequestKey
from protocol.errors import ContractError, PromptMismatchError
from protocol.segments import IGNORE_INDEX, Segment

RopeIndex = Callable[[Tensor, Tensor], Tensor]
"""(ids [L], image grid [I, 3]) → rotary positions [3, L] of one segment; the model's own."""


@dataclass(frozen=True, slots=True)
class Vision:
    """Pixels of one segment as the checkpoint's own processor made them."""

    pixel_values: Tensor
    """[P, D] flattened patches."""
    grid_thw: Tensor
    """[I, 3] patches in time, height and width of each image."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward. Coordinate targets are listed segment by segment, within a segment tail first, then prefix."""

    input_ids: Tensor
    """[B, T]; padding holds 0."""
    attention_mask: Tensor | None
    """[B, T] of 0/1 where rows are padded, None for a packed row (B = 1)."""
    position_ids: Tensor
    """[4, B, T] text, then temporal, height and width."""
    labels: Tensor
    """[B, T] cross-entropy target or -100."""
    coord_batch: Tensor
    """[C] row of each coordinate target."""
    coord_positions: Tensor
    """[C] its position in that row."""
    coord_bins: Tensor
    coord_in_prefix: Tensor
    """[C] bool."""
    pixel_values: Tensor
    """[P, D] of all images, in the order of their segments."""
    grid_thw: Tensor
    """[I, 3]."""
    segment_lengths: tuple[int, ...] | None
    """Of a packed row; None where rows are padded."""
    keys: tuple[RequestKey, ...]
    num_tokens: int
    """Without padding."""

    def supervised_rows(self) -> Tensor:
        """[N + C] flat index (row · T + position − 1) where the head is read: CE targets, then coordinate targets."""
        length = self.input_ids.shape[1]
        return torch.cat([self._ce_flat(), self.coord_batch * length + self.coord_positions]) - 1

    def ce_ids(self) -> Tensor:
        """[N] token ids in the order of `supervised_rows`."""
        return self.labels.flatten()[self._ce_flat()]

    def _ce_flat(self) -> Tensor:
        return (self.labels.flatten() != IGNORE_INDEX).nonzero().squeeze(-1)

    def to(self, device: torch.device, dtype: torch.dtype) -> Batch:
        """On `device`, pixels as `dtype`."""
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in _TENSORS}
        mask = None if self.attention_mask is None else self.attention_mask.to(device)
        moved["pixel_values"] = moved["pixel_values"].to(dtype)
        return replace(self, attention_mask=mask, **moved)


_TENSORS = (
    *("input_ids", "position_ids", "labels", "coord_batch", "coord_positions", "coord_bins"),
    *("coord_in_prefix", "pixel_values", "grid_thw"),
)


def check_prompt(key: object, segment_ids: IntArray, prompt_ids: IntArray, prompt_len: int | None = None) -> None:
    """The engine's prompt, expanded image tokens included, must be the learner's; else PromptMismatchError.

    Args:
        segment_ids: [>= P] a segment; the engine put the prompt at its start.
        prompt_ids: [P] what this side's processor makes of the same prompt and image.
        prompt_len: tokens of the segment that are the engine's prompt; None takes P.
    """
    got = segment_ids[: len(prompt_ids) if prompt_len is None else prompt_len]
    if len(got) == len(prompt_ids) and np.array_equal(got, prompt_ids):
        return
    common = min(len(got), len(prompt_ids))
    different = np.nonzero(got[:common] != prompt_ids[:common])[0]
    first = int(different[0]) if len(different) else common
    theirs = int(got[first]) if first < len(got) else None
    ours = int(prompt_ids[first]) if first < len(prompt_ids) else None
    raise PromptMismatchError(
        f"{key}: the learner encodes the prompt to {len(prompt_ids)} ids, the engine to {len(got)}, and "
        f"they differ first at position {first} (learner {ours}, engine {theirs}); engine and learner must load the "
        "same processor files, chat template, prompts and image: check model.model and custom.*_prompt on both sides"
    )


def split_packed(row_length: int, lengths: Sequence[int]) -> list[slice]:
    """Slices of consecutive segments in a row; ContractError when they do not fit or one is empty.

    `split_packed(21, [12, 9])` → `[slice(0, 12), slice(12, 21)]`.
    """
    if any(length <= 0 for length in lengths):
        raise ContractError(f"segment lengths {list(lengths)} must all be positive; the packer must drop empty ones")
    if sum(lengths) > row_length:
        raise ContractError(
            f"segments of {list(lengths)} tokens add up to {sum(lengths)}, more than the row's {row_length}; "
            "the packer must respect the capacity (global_max_length)"
        )
    ends = np.cumsum(lengths)
    return [slice(int(end - length), int(end)) for end, length in zip(ends, lengths, strict=True)]


def collate_packed(
    segments: Sequence[Segment], vision: Sequence[Vision], rope_index: RopeIndex, capacity: int | None = None
) -> Batch:
    """One row [1, T] that holds the segments one after the other, without padding."""
    lengths = [len(segment.input_ids) for segment in segments]
    places = split_packed(capacity or sum(lengths), lengths)
    input_ids = _long(np.concatenate([segment.input_ids for segment in segments]))
    positions = [_position_ids(s, v, rope_index) for s, v in zip(segments, vision, strict=True)]
    offsets = [place.start for place in places]
    return Batch(
        input_ids=input_ids[None],
        attention_mask=None,
        position_ids=torch.cat(positions, dim=1)[:, None],
        labels=_long(np.concatenate([segment.labels for segment in segments]))[None],
        coord_batch=torch.zeros(sum(len(s.coord_bins) for s in segments), dtype=torch.long),
        coord_positions=_long(
            np.concatenate([s.coord_positions + start for s, start in zip(segments, offsets, strict=True)])
        ),
        segment_lengths=tuple(lengths),
        **_shared(segments, vision),
    )


def collate_padded(segments: Sequence[Segment], vision: Sequence[Vision], rope_index: RopeIndex) -> Batch:
    """One row per segment, right-padded to the longest (`training.packing: false`)."""
    lengths = [len(segment.input_ids) for segment in segments]
    shape = (len(segments), max(lengths))
    input_ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
    position_ids = torch.zeros((4, *shape), dtype=torch.long)
    for row, (segment, image) in enumerate(zip(segments, vision, strict=True)):
        length = lengths[row]
        input_ids[row, :length] = _long(segment.input_ids)
        labels[row, :length] = _long(segment.labels)
        mask[row, :length] = 1
        position_ids[:, row, :length] = _position_ids(segment, image, rope_index)
    counts = torch.tensor([len(segment.coord_bins) for segment in segments])
    return Batch(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=position_ids,
        labels=labels,
        coord_batch=torch.arange(len(segments)).repeat_interleave(counts),
        coord_positions=_long(np.concatenate([segment.coord_positions for segment in segments])),
        segment_lengths=None,
        **_shared(segments, vision),
    )


def collate_nothing(ids: Sequence[int], vision: Vision, rope_index: RopeIndex) -> Batch:
    """A forward without any target, for a rank that has no segment while the others have one.

    It must still take part: collectives inside forward and backward line up only if every rank runs the same modules,
    the vision tower included.
    """
    empty = np.zeros(0, dtype=np.int32)
    segment = Segment(
        key=RequestKey(-1),
        input_ids=np.asarray(ids, dtype=np.int32),
        labels=np.full(len(ids), IGNORE_INDEX, dtype=np.int32),
        coord_positions=empty,
        coord_bins=empty,
        coord_in_prefix=np.zeros(0, dtype=np.bool_),
        prompt_len=len(ids),
        images=(),
        first_version=0,
        last_version=0,
    )
    return replace(collate_packed([segment], [vision], rope_index), keys=(), num_tokens=0)


def _position_ids(segment: Segment, vision: Vision, rope_index: RopeIndex) -> Tensor:
    """[4, L] of one segment, as if it were alone."""
    ids = _long(segment.input_ids)
    return torch.cat([torch.arange(len(ids))[None], rope_index(ids, vision.grid_thw)])


def _shared(segments: Sequence[Segment], vision: Sequence[Vision]) -> dict[str, Any]:
    return {
        "coord_bins": _long(np.concatenate([segment.coord_bins for segment in segments])),
        "coord_in_prefix": torch.from_numpy(np.concatenate([segment.coord_in_prefix for segment in segments])),
        "pixel_values": torch.cat([image.pixel_values for image in vision]),
        "grid_thw": torch.cat([image.grid_thw for image in vision]),
        "keys": tuple(segment.key for segment in segments),
        "num_tokens": sum(len(segment.input_ids) for segment in segments),
    }


def _long(array: IntArray) -> Tensor:
    """A copy: arrays out of the object store are read-only, which torch warns about."""
    return torch.from_numpy(array.astype(np.int64))
