"""The kept part of a target, under either policy (SPEC A21), and what its matched slots learn (SPEC 8)."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.appending import object_entry
from protocol.contracts import IntArray, MatchResult, ParsedCompletion, Prediction, Record
from protocol.errors import ContractError
from protocol.parsing import parse
from protocol.transport import TransportSettings, slot_bins
from protocol.vocab import SPECIAL_TOKEN, TokenCodec

_DAMAGED = "\ufffd"


@dataclass(frozen=True, slots=True)
class Prefix:
    """What stands before the appended objects."""

    ids: IntArray
    """[X]"""
    text: str
    max_index: int | None
    """Largest `object_N` in it."""
    matched: tuple[Prediction | None, ...]
    """The prediction of each pair of the match, with its token positions in `ids`; None where it has no place."""


def rollout_prefix(parsed: ParsedCompletion, match: MatchResult) -> Prefix:
    """The prefix as it was generated, spurious predictions included."""
    matched = tuple(parsed.predictions[pair.prediction] for pair in match.pairs)
    return Prefix(parsed.prefix_ids, parsed.prefix_text, parsed.max_index, matched)


def rebuild(parsed: ParsedCompletion, match: MatchResult, codec: TokenCodec) -> Prefix:
    """Matched predictions only, in rollout order, renumbered from 1 and written canonically (A21).

    A prediction whose desc cannot be written has no place here, and its truth is appended.
    """
    originals = [parsed.predictions[pair.prediction] for pair in match.pairs]
    kept = [item for item in originals if _is_writable(item.desc)]
    text = "{" + ", ".join(object_entry(at, item.desc, item.shape) for at, item in enumerate(kept, start=1))
    # Reading our own text back gives the token positions, proves that it says what was matched, and divides the two
    # closing braces, which are one token, as a rollout's are.
    again = parse(codec.encode(text + "}"), codec)
    if [item.shape for item in again.predictions] != [item.shape for item in kept]:
        raise ContractError(
            f"the rebuilt prefix reads back as {len(again.predictions)} objects instead of {len(kept)}; "
            "the codec must encode coordinate tokens as single ids: check its special tokens"
        )
    places = iter(again.predictions)
    matched = tuple(next(places) if _is_writable(item.desc) else None for item in originals)
    return Prefix(again.prefix_ids, text, len(kept) or None, matched)


def _is_writable(desc: str) -> bool:
    """Whether plain text says what the model said: a special token that it spelt in escapes would become the token,
    and a character divided between tokens was read as U+FFFD (SPEC 5)."""
    return SPECIAL_TOKEN.search(desc) is None and _DAMAGED not in desc


def prefix_slots(
    prefix: Prefix, record: Record, match: MatchResult, settings: TransportSettings
) -> tuple[list[tuple[int, int]], set[int]]:
    """(position in the prefix, bin) of every matched slot, and the truths that are learnt there.

    A pair whose target does not fit its slots is left out; its truth is appended instead (SPEC 8).
    """
    slots: list[tuple[int, int]] = []
    supervised: set[int] = set()
    for pair, prediction in zip(match.pairs, prefix.matched, strict=True):
        if prediction is None:
            continue
        bins = slot_bins(prediction.shape, record.objects[pair.ground_truth].shape, settings)
        if len(bins) == len(prediction.coord_positions):
            slots.extend(zip(prediction.coord_positions, bins, strict=True))
            supervised.add(pair.ground_truth)
    return slots, supervised
