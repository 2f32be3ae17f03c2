"""Which position of a teacher-forced row is supervised, and how (SPEC 11 and A2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.contracts import IntArray
from protocol.errors import ContractError
from protocol.segments import IGNORE_INDEX


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSpans:
    """Where the parts of a row lie: prompt [0, P), prefix [P, P + X), tail [P + X, P + T)."""

    prompt_len: int
    prefix_len: int
    train_len: int
    """prefix + tail, without end-of-turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowLabels:
    """Targets of one row of L tokens."""

    labels: IntArray
    """[L] the position's own id where cross-entropy applies, else -100."""
    coord_positions: IntArray
    """[C] tail first, then prefix."""
    coord_bins: IntArray
    """[C]"""
    coord_in_prefix: npt.NDArray[np.bool_]
    """[C]"""


def label_row(
    input_ids: IntArray,
    bins: IntArray,
    spans: RowSpans,
    *,
    prefix_targets: Sequence[tuple[int, int]] = (),
    tail_ignored: Iterable[int] = (),
    supervise_eos: bool = True,
) -> RowLabels:
    """Labels of one row.

    Args:
        input_ids: [L] prompt, prefix, tail, chat suffix.
        bins: [L] bin of each id that is a coordinate token, -1 elsewhere.
        spans: lengths of the parts.
        prefix_targets: (position in the prefix, bin); positions outside [0, X) are skipped.
        tail_ignored: positions in the tail without cross-entropy: values of descriptions.
        supervise_eos: also train the token right behind the tail, the end of turn (A2).

    Raises:
        ContractError: the spans do not fit the row, or a target lies outside the answer.
    """
    start, end = _check_spans(len(input_ids), spans)
    tail = np.arange(max(1, min(spans.prompt_len + spans.prefix_len, end)), end)
    is_coord = bins[tail] >= 0
    labels = np.full(len(input_ids), IGNORE_INDEX, dtype=np.int32)
    labels[tail] = np.where(is_coord, IGNORE_INDEX, input_ids[tail])
    ignored = np.asarray(list(tail_ignored), dtype=np.int64) + spans.prompt_len + spans.prefix_len
    labels[ignored[(ignored >= tail[0]) & (ignored < end)] if len(tail) else []] = IGNORE_INDEX
    if supervise_eos and end < len(input_ids):
        labels[end] = input_ids[end]
    kept = [(start + at, bin_) for at, bin_ in prefix_targets if 0 <= at < spans.prefix_len]
    outside = [position for position, _ in kept if position >= end]
    if outside:
        raise ContractError(
            f"prefix targets at {outside[:4]} lie outside the answer [{start}, {end}); "
            "prefix_len must not exceed train_len, check who measured them"
        )
    in_tail, in_prefix = tail[is_coord], np.array(kept, dtype=np.int32).reshape(-1, 2)
    return RowLabels(
        labels=labels,
        coord_positions=np.concatenate([in_tail, in_prefix[:, 0]]).astype(np.int32),
        coord_bins=np.concatenate([bins[in_tail], in_prefix[:, 1]]).astype(np.int32),
        coord_in_prefix=np.arange(len(in_tail) + len(in_prefix)) >= len(in_tail),
    )


def _check_spans(length: int, spans: RowSpans) -> tuple[int, int]:
    """[start, end) of the answer in the row."""
    start, end = spans.prompt_len, min(spans.prompt_len + spans.train_len, length)
    if not 0 < start < length:
        raise ContractError(
            f"prompt_len must be in 1..{length - 1} for a row of {length} tokens, got {start}; "
            "the row must hold the prompt and an answer"
        )
    if spans.prefix_len < 0 or end <= start:
        raise ContractError(
            f"the answer is empty or negative: prompt_len {start}, prefix_len {spans.prefix_len}, "
            f"train_len {spans.train_len}, row of {length} tokens; a target closes at least one brace"
        )
    return start, end
