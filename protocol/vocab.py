"""Coordinate tokens and the door to a tokenizer.

`protocol` never imports a tokenizer library: it talks to a `TokenCodec`, which `actors` builds from the checkpoint's
own files and tests build from a BPE table or from characters.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

NUM_BINS = 1000
END_OF_TURN = "<|im_end|>"
SPECIAL_TOKEN = re.compile(r"<\|[^|<>]*\|>")
"""The spelling of a special token: a tokenizer reads the token in it, wherever it stands."""
COORD_TOKEN_PATTERN = re.compile(r"<\|coord_(\d{1,4})\|>")


class TokenCodec(Protocol):
    """What the protocol needs of a tokenizer."""

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, special tokens recognised, none added."""
        ...

    def piece(self, token_id: int) -> str:
        """The text of one id decoded alone: special tokens kept, no clean-up, U+FFFD for a partial character."""
        ...

    @property
    def coord_bins(self) -> Mapping[int, int]:
        """Token id → bin, for each of the 1,000 coordinate tokens."""
        ...


def coord_token(bin_: int) -> str:
    """`coord_token(7)` → `<|coord_7|>`; ValueError outside 0..999."""
    if not 0 <= bin_ < NUM_BINS:
        raise ValueError(f"bin must be in 0..{NUM_BINS - 1}, got {bin_}")
    return f"<|coord_{bin_}|>"


def coord_value(token: str) -> int:
    """Inverse of `coord_token`; leading zeros are accepted, ValueError for any other text or value."""
    match = COORD_TOKEN_PATTERN.fullmatch(token)
    if match is None or int(match[1]) >= NUM_BINS:
        raise ValueError(f"{token!r} is no coordinate token; write <|coord_k|> with k in 0..{NUM_BINS - 1}")
    return int(match[1])


@dataclass(frozen=True, slots=True)
class CoordIds:
    """The 1,000 coordinate ids of a tokenizer, in bin order."""

    ids: tuple[int, ...]

    @classmethod
    def lookup(cls, token_to_id: Mapping[str, int]) -> CoordIds:
        """Reads the ids from a vocabulary; ValueError that counts and names what is missing."""
        missing = [coord_token(k) for k in range(NUM_BINS) if coord_token(k) not in token_to_id]
        if missing:
            raise ValueError(
                f"the tokenizer lacks {len(missing)} of {NUM_BINS} coordinate tokens (first: {missing[0]}); "
                "use a checkpoint that was trained with them, or begin one: rollmatch add-coordinates"
            )
        return cls(tuple(token_to_id[coord_token(k)] for k in range(NUM_BINS)))

    def to_bins(self) -> dict[int, int]:
        """Token id → bin."""
        return {token_id: bin_ for bin_, token_id in enumerate(self.ids)}


def find_missing(tokens: Sequence[str], vocabulary: Mapping[str, int]) -> list[str]:
    """Those of `tokens` that `vocabulary` lacks, in order."""
    return [token for token in tokens if token not in vocabulary]
