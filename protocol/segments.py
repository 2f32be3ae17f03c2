"""What is trained on: a Segment, where it lies and what is known of it, and the PackPlan of a step.

The arrays of a segment stay in the object store; SegmentRef and SegmentMeta go through the driver. What comes before a
segment is in `contracts`, with the reason for numpy arrays. Nothing here validates: the producer does, once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from protocol.contracts import IntArray, RequestKey

IGNORE_INDEX = -100
"""Label of a position without a cross-entropy target, as torch has it."""


@dataclass(frozen=True, kw_only=True)
class SegmentStats:
    """Counters of one segment; they add up, so rates come from sums (SPEC A12, 15)."""

    gt_objects: int = 0
    valid_predictions: int = 0
    matched_pairs: int = 0
    matched_for_supervision: int = 0
    excluded_from_supervision: int = 0
    fn_appended: int = 0
    gating_rejections: int = 0
    matched_maskiou_sum: float = 0.0
    parse_dropped_invalid: int = 0
    parse_truncated: int = 0
    cut_fallback: int = 0
    duplicates: int = 0
    prefix_coord_targets: int = 0
    tail_ignored: int = 0
    prompt_len: int = 0
    rollout_len: int = 0
    """After the end-of-turn strip."""
    prefix_len: int = 0
    train_len: int = 0
    """prefix + append, without end-of-turn."""
    encoded_len: int = 0
    desc_pairs_total: int = 0
    desc_exact_ok: int = 0
    desc_sem_segments: int = 0
    """1 where the encoder compared them as well (SPEC 16)."""
    desc_sem_ok: int = 0
    """Pairs that are equal or similar enough."""
    desc_sem_sim_sum: float = 0.0
    desc_sem_sim_count: int = 0
    repeat_terminated: int = 0
    """1 where the repeat guard ended the rollout."""
    decode_mode: str = "greedy"


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """One append-ready, teacher-forced row with its targets. Built by `targets`, read-only everywhere else.

    Worked example (SPEC labels-01): input_ids [12], prompt_len 5, prefix_len 3, train_len 6 → tail is [8, 11).
    """

    key: RequestKey
    input_ids: IntArray
    """[L] prompt + prefix + append + chat suffix (end-of-turn, newline)."""
    labels: IntArray
    """[L] cross-entropy target of each position (its own id) or -100."""
    coord_positions: IntArray
    """[C] positions whose id is a coordinate target; tail first, then prefix. Logits are read at position - 1."""
    coord_bins: IntArray
    """[C] target bin of each."""
    coord_in_prefix: npt.NDArray[np.bool_]
    """[C] true for matched prefix slots."""
    prompt_len: int
    images: tuple[str, ...]
    first_version: int
    last_version: int


def segment_bytes(length: int) -> int:
    """Most bytes that the arrays of a segment of `length` tokens can take: every token a coordinate target."""
    per_token = 4 + 4 + 4 + 4 + 1  # input_ids, labels, coord_positions, coord_bins, coord_in_prefix
    return length * per_token


class SegmentRef(NamedTuple):
    """Where a segment lies: in an object of the object store that holds a group of them."""

    group: Any
    """Reference of a tuple of segments."""
    position: int


@dataclass(frozen=True, kw_only=True)
class SegmentMeta:
    """The small part that goes through the driver; the Segment itself stays in the object store."""

    key: RequestKey
    length: int
    """Tokens of the segment: what packing plans with."""
    num_bytes: int
    first_version: int
    last_version: int
    stats: SegmentStats


@dataclass(frozen=True, slots=True, kw_only=True)
class PackPlan:
    """Who trains what in one optimizer step: `micro_batches[m][rank]` is a tuple of positions in the planned list."""

    micro_batches: tuple[tuple[tuple[int, ...], ...], ...]
    carried: tuple[int, ...] = ()
    """Positions left for a later step, ascending."""
