"""Builds what is trained on: prompt, kept prefix, missing ground truth, end of turn (SPEC 8-11, A2, A5).

prompt | {"object_1": {matched}, "object_2": {spurious} | , "object_3": {missing}} | <|im_end|> newline
         prefix, as generated: matched slots learn        tail: cross-entropy,       cross-entropy on
         the true bins, nothing else is supervised        coord targets              end of turn (A2)

With `teach_format`, where nothing of the answer can be kept, there is no prefix: the tail is a whole answer, which
learns its opening brace and its descriptions as well. SPEC has neither learn anything (9, 11), so a model that never
wrote the format goes on opening answers in its own way, and writes coordinates for descriptions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from protocol.appending import append_fragment, covered_tokens, desc_spans
from protocol.contracts import Completion, IntArray, MatchResult, ParsedCompletion, Record
from protocol.errors import ContractError
from protocol.labels import RowSpans, label_row
from protocol.parsing import FALLBACK_PREFIX
from protocol.pieces import piece_table
from protocol.prefixes import prefix_slots, rebuild, rollout_prefix
from protocol.segments import Segment, SegmentStats
from protocol.transport import TransportSettings
from protocol.vocab import TokenCodec

PrefixPolicy = Literal["rollout", "matched"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetSettings:
    """Knobs of target construction."""

    prefix_policy: PrefixPolicy = "rollout"
    """`rollout` keeps the prefix as generated; `matched` rebuilds it from matched predictions only (A21)."""
    supervise_eos: bool = True
    """Train the end-of-turn token behind the tail (A2)."""
    teach_format: bool = False
    """Where nothing of the answer can be kept, train a whole answer: opening brace and descriptions too."""
    max_length: int
    """Tokens; a longer row is not trained on (A5)."""
    ot_cost: str = "l2"
    ot_epsilon: float = 10.0
    ot_iters: int = 30

    @property
    def transport(self) -> TransportSettings:
        return TransportSettings(self.ot_cost, self.ot_epsilon, self.ot_iters)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A segment, or the reason why there is none, with its counters either way."""

    segment: Segment | None
    """None when `oversize`."""
    stats: SegmentStats
    oversize: bool
    """encoded_len exceeds max_length: the caller counts it and quarantines the record."""
    append_text: str
    train_text: str
    """prefix + append."""
    appended: tuple[int, ...] = ()
    """Positions of the ground truth that was appended."""


def build_target(
    *,
    record: Record,
    completion: Completion,
    parsed: ParsedCompletion,
    match: MatchResult,
    suffix_ids: Sequence[int],
    codec: TokenCodec,
    settings: TargetSettings,
    duplicates: int = 0,
) -> Target:
    """The append-ready, labelled row of one rollout.

    Args:
        match: of `parsed.predictions` against `record.objects`.
        suffix_ids: what the chat template writes behind the answer: end-of-turn, newline.
        duplicates: repeated predictions of this rollout (A20), for the counters only.

    Raises:
        ContractError: no suffix although the end of turn is supervised, or an empty prompt.
    """
    if settings.supervise_eos and not len(suffix_ids):
        raise ContractError(
            "supervise_eos needs the end-of-turn token in suffix_ids, got none; pass the chat template's suffix"
        )
    prefix = rollout_prefix(parsed, match) if settings.prefix_policy == "rollout" else rebuild(parsed, match, codec)
    slots, supervised = prefix_slots(prefix, record, match, settings.transport)
    appended = tuple(at for at in range(len(record.objects)) if at not in supervised)
    missing = [record.objects[at] for at in appended]
    append_text = append_fragment(prefix.text, missing, 1 if prefix.max_index is None else prefix.max_index + 1)
    whole = settings.teach_format and prefix.max_index is None
    if whole:
        append_text = FALLBACK_PREFIX + append_fragment(FALLBACK_PREFIX, missing, 1)
        prefix = replace(prefix, ids=prefix.ids[:0], text="")
    append_ids = codec.encode(append_text)
    row = _TeacherRow(
        input_ids=np.concatenate(
            [completion.prompt_token_ids, prefix.ids, np.array(append_ids, np.int32), np.array(suffix_ids, np.int32)]
        ).astype(np.int32, copy=False),
        spans=RowSpans(
            prompt_len=len(completion.prompt_token_ids),
            prefix_len=len(prefix.ids),
            train_len=len(prefix.ids) + len(append_ids),
        ),
        slots=slots,
        tail_ignored=[] if whole else _desc_tokens(append_ids, codec),
    )
    oversize = len(row.input_ids) > settings.max_length
    return Target(
        segment=None if oversize else _segment(record, completion, row, codec, settings.supervise_eos),
        stats=replace(
            _stats(record, parsed, match, row),
            matched_for_supervision=len(supervised),
            excluded_from_supervision=len(match.pairs) - len(supervised),
            fn_appended=len(missing),
            duplicates=duplicates,
        ),
        oversize=oversize,
        append_text=append_text,
        train_text=prefix.text + append_text,
        appended=appended,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _TeacherRow:
    """The encoded row before it is labelled."""

    input_ids: IntArray
    spans: RowSpans
    slots: list[tuple[int, int]]
    """(position in the prefix, bin)."""
    tail_ignored: list[int]
    """Positions in the tail that spell descriptions."""


def _desc_tokens(append_ids: Sequence[int], codec: TokenCodec) -> list[int]:
    pieces = piece_table(codec).pieces(append_ids)
    # Spans are looked up in the pieces' own text: a character split over tokens is longer there than in the fragment.
    return covered_tokens(pieces, desc_spans("".join(pieces)))


def _segment(
    record: Record, completion: Completion, row: _TeacherRow, codec: TokenCodec, supervise_eos: bool
) -> Segment:
    labels = label_row(
        row.input_ids,
        piece_table(codec).bins(row.input_ids),
        row.spans,
        prefix_targets=row.slots,
        tail_ignored=row.tail_ignored,
        supervise_eos=supervise_eos,
    )
    return Segment(
        key=completion.key,
        input_ids=row.input_ids,
        labels=labels.labels,
        coord_positions=labels.coord_positions,
        coord_bins=labels.coord_bins,
        coord_in_prefix=labels.coord_in_prefix,
        prompt_len=row.spans.prompt_len,
        images=record.images,
        first_version=completion.first_version,
        last_version=completion.last_version,
    )


def _stats(record: Record, parsed: ParsedCompletion, match: MatchResult, row: _TeacherRow) -> SegmentStats:
    """What is known here; the actor adds how descriptions compare and how the answer was decoded."""
    return SegmentStats(
        gt_objects=len(record.objects),
        valid_predictions=len(parsed.predictions),
        matched_pairs=len(match.pairs),
        gating_rejections=match.gating_rejections,
        matched_maskiou_sum=sum(pair.mask_iou for pair in match.pairs),
        parse_dropped_invalid=len(parsed.rejects),
        parse_truncated=int(parsed.truncated),
        cut_fallback=int(parsed.cut_fallback),
        prefix_coord_targets=len(row.slots),
        tail_ignored=len(row.tail_ignored),
        prompt_len=row.spans.prompt_len,
        rollout_len=len(parsed.response_ids),
        prefix_len=row.spans.prefix_len,
        train_len=row.spans.train_len,
        encoded_len=len(row.input_ids),
    )
