"""Reads a rollout strictly, by its tokens (SPEC 5 with A1, A3 and A4). Nothing is repaired.

`parse` is total: any sequence of ids gives a `ParsedCompletion`, in time linear in its text. The codec must be total
too: `piece` of an id outside the vocabulary is some text, normally the empty one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.contracts import ParsedCompletion, Reject
from protocol.judging import judge
from protocol.pieces import TokenText, piece_table
from protocol.scanner import scan
from protocol.vocab import END_OF_TURN, TokenCodec

FALLBACK_PREFIX = "{"
"""Where nothing of a rollout can be kept."""
_CARET_CONTEXT = 16
"""Tokens shown on either side of the offending ones."""


def parse(token_ids: Sequence[int] | npt.NDArray[Any], codec: TokenCodec) -> ParsedCompletion:
    """Predictions, rejects and append-ready prefix of one completion.

    Args:
        token_ids: [L] generated ids, without the prompt; what follows the first end-of-turn text is ignored.
        codec: the tokenizer's door; its coordinate ids decide what is a coordinate.
    """
    response, stop_fits = _strip_end_of_turn(TokenText.of(token_ids, codec))
    found = scan(response.text)
    if found.top is None:
        return _unusable(response)
    prefix, cut_fits = response.cut(found.cut)
    predictions, rejects = judge(response, found)
    if not (stop_fits and cut_fits):
        return _fallen_back(response, rejects, found.truncated)
    return ParsedCompletion(
        response_ids=response.array,
        prefix_ids=np.asarray(prefix, dtype=np.int32),
        prefix_text=response.text[: found.cut],
        max_index=max((index for index, end in found.keys if end <= found.cut), default=None),
        predictions=predictions,
        rejects=rejects,
        truncated=found.truncated,
    )


def _strip_end_of_turn(view: TokenText) -> tuple[TokenText, bool]:
    """The view up to the first end-of-turn text, even inside a string (SPEC 5.1)."""
    stop = view.text.find(END_OF_TURN)
    if stop < 0:
        return view, True
    return view.first(stop)


def _unusable(response: TokenText) -> ParsedCompletion:
    """No top-level `{`: the prefix is a fresh one."""
    return ParsedCompletion(
        response_ids=response.array,
        prefix_ids=np.asarray(response.codec.encode(FALLBACK_PREFIX), dtype=np.int32),
        prefix_text=FALLBACK_PREFIX,
        max_index=None,
        predictions=(),
        rejects=(),
        truncated=True,
    )


def _fallen_back(response: TokenText, rejects: tuple[Reject, ...], truncated: bool) -> ParsedCompletion:
    """The cut divides a token that cannot be divided: no prediction has a place in the prefix `{` (A4)."""
    return ParsedCompletion(
        response_ids=response.array,
        prefix_ids=np.asarray(response.codec.encode(FALLBACK_PREFIX), dtype=np.int32),
        prefix_text=FALLBACK_PREFIX,
        max_index=None,
        predictions=(),
        rejects=rejects,
        truncated=truncated,
        cut_fallback=True,
    )


def caret(parsed: ParsedCompletion, reject: Reject, codec: TokenCodec) -> str:
    """The rejected object in its surroundings, with carets under the offending tokens and the reason below.

    ... "bbox_2d": ["<|coord_5|>", "<|coord_6|>", "<|coord_7|>"]}}
        ^^^^^^^^^
    object_7: coord_tokens: bbox_2d has 3 values in 3 coordinate tokens, expected 4 (tokens 42..47)
    """
    start, end = reject.token_span
    table = piece_table(codec)

    def show(first: int, last: int) -> str:
        pieces = table.pieces(parsed.response_ids[max(0, first) : max(0, last)].tolist())
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in "".join(pieces))

    before, offending = show(start - _CARET_CONTEXT, start), show(start, min(end, start + 4 * _CARET_CONTEXT))
    after = show(end, end + _CARET_CONTEXT) if end <= start + 4 * _CARET_CONTEXT else " ..."
    lead = "... " if start > _CARET_CONTEXT else ""
    return (
        f"{lead}{before}{offending}{after}\n"
        f"{' ' * len(lead + before)}{'^' * max(1, len(offending))}\n"
        f"{reject.key}: {reject.reason}: {reject.detail} (tokens {start}..{end})"
    )
