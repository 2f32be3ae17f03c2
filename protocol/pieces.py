"""Token ids as text: the text of each id, decoded alone, and where it lies (SPEC 5).

Decoding an id is remembered per codec, because a rollout of 9,000 tokens repeats a few hundred ids.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.contracts import IntArray
from protocol.vocab import TokenCodec

_MAX_TABLES = 8
_MAX_PARTS = 1024


class PieceTable(dict[int, str]):
    """Id → piece of one codec, filled on demand, and the bins of its coordinate ids as an array."""

    def __init__(self, codec: TokenCodec) -> None:
        super().__init__()
        self.codec = codec
        bins = codec.coord_bins
        self._bin_of_id: IntArray = np.full(max(bins, default=0) + 2, -1, dtype=np.int32)
        self._bin_of_id[list(bins.keys())] = list(bins.values())
        self._parts: dict[str, list[int]] = {}

    def __missing__(self, token_id: int) -> str:
        piece = self.codec.piece(token_id)
        self[token_id] = piece
        return piece

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """One text per id."""
        return list(map(self.__getitem__, ids))

    def encode_part(self, part: str) -> list[int]:
        """Ids of the kept part of a divided token; remembered, because it is a closing brace nearly always."""
        ids = self._parts.get(part)
        if ids is None:
            ids = self.codec.encode(part)
            if len(self._parts) < _MAX_PARTS:
                self._parts[part] = ids
        return ids

    def bins(self, ids: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Bin of each coordinate id, -1 of any other id."""
        last = len(self._bin_of_id) - 1  # an id that is no coordinate
        return self._bin_of_id.take(np.where((ids >= 0) & (ids < last), ids, last))


_TABLES: OrderedDict[int, PieceTable] = OrderedDict()
"""By identity of the codec, which the table keeps alive: an id is never reused while its table is here."""


def piece_table(codec: TokenCodec) -> PieceTable:
    """The table of this codec object; the last few are kept."""
    table = _TABLES.get(id(codec))
    if table is None:
        table = PieceTable(codec)
        _TABLES[id(codec)] = table
        while len(_TABLES) > _MAX_TABLES:
            _TABLES.popitem(last=False)
    return table


def piece_ends(pieces: Sequence[str]) -> npt.NDArray[np.int64]:
    """[n] character behind each piece in the concatenated text."""
    return np.cumsum(np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces)))


@dataclass(frozen=True, slots=True)
class TokenText:
    """Ids with their text: `ends[i]` is the character behind token i."""

    ids: list[int]
    array: IntArray
    pieces: list[str]
    text: str
    ends: npt.NDArray[np.int64]
    codec: TokenCodec

    @classmethod
    def of(cls, token_ids: Sequence[int] | npt.NDArray[Any], codec: TokenCodec) -> TokenText:
        """Decodes every id alone."""
        array = np.asarray(token_ids, dtype=np.int32)
        ids: list[int] = array.tolist()
        pieces = piece_table(codec).pieces(ids)
        return cls(ids, array, pieces, "".join(pieces), piece_ends(pieces), codec)

    def first(self, char: int) -> tuple[TokenText, bool]:
        """The first `char` characters, cut as `cut` does."""
        ids, fits = self.cut(char)
        count = len(ids)
        if ids != self.ids[:count]:
            return TokenText.of(ids, self.codec), fits
        text = self.text[: int(self.ends[count - 1]) if count else 0]
        return TokenText(ids, self.array[:count], self.pieces[:count], text, self.ends[:count], self.codec), fits

    def cut(self, char: int) -> tuple[list[int], bool]:
        """Ids of the first `char` characters (SPEC 5.3), and whether they spell exactly these.

        A token that `char` divides is re-encoded; where its pieces do not give the kept text back, only the whole
        tokens are returned, with False.
        """
        count = int(self.ends.searchsorted(char, side="right"))
        kept = self.ids[:count]
        start = int(self.ends[count - 1]) if count else 0
        if start == char:
            return kept, True
        part = self.text[start:char]
        table = piece_table(self.codec)
        encoded = table.encode_part(part)
        if "".join(table.pieces(encoded)) != part:
            return kept, False
        return kept + encoded, True

    def token_spans(self, char_spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """[start, end) of the tokens that hold the characters [start, end), for each span."""
        if not char_spans:
            return []
        bounds = np.asarray(char_spans, dtype=np.int64)
        first = self.ends.searchsorted(bounds[:, 0], side="right")
        last = self.ends.searchsorted(np.maximum(bounds[:, 1] - 1, bounds[:, 0]), side="right")
        limit = len(self.ids)
        return [(min(a, limit), min(b + 1, limit)) for a, b in zip(first.tolist(), last.tolist(), strict=True)]
