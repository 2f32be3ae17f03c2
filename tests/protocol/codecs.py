"""Tokenizers for tests: the real Qwen byte-pair encoding, one token per character, and a tiny seeded one."""

from __future__ import annotations

import base64
import random
import re
from collections.abc import Mapping
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import tiktoken

from actors.simulation import CharCodec as CharCodec
from protocol.vocab import NUM_BINS, CoordIds, coord_token

FIRST_SPECIAL = 151643
WILDCARD_ID = 151669
_CHAT = ("endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end")
_VISION = ("quad_start", "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad")
_CODE = ("fim_prefix", "fim_middle", "fim_suffix", "fim_pad", "repo_name", "file_sep")
QWEN_SPECIALS = (
    *(f"<|{name}|>" for name in (*_CHAT, *_VISION)),
    *("<tool_call>", "</tool_call>"),
    *(f"<|{name}|>" for name in _CODE),
    *("<tool_response>", "</tool_response>", "<think>", "</think>"),
)
_WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class QwenCodec:
    """Qwen's 151,643 ranks, its 26 special tokens, the wildcard and the 1,000 coordinate tokens (SPEC 3)."""

    def __init__(self, ranks_file: Path) -> None:
        ranks = {
            base64.b64decode(token): int(rank) for token, rank in map(bytes.split, ranks_file.read_bytes().splitlines())
        }
        specials = {text: FIRST_SPECIAL + at for at, text in enumerate(QWEN_SPECIALS)}
        specials["<|coord_*|>"] = WILDCARD_ID
        specials |= {coord_token(bin_): WILDCARD_ID + 1 + bin_ for bin_ in range(NUM_BINS)}
        self._encoding = tiktoken.Encoding(
            "qwen", pat_str=_WORD_PATTERN, mergeable_ranks=ranks, special_tokens=specials
        )
        self._specials = frozenset(specials)
        self._coord_bins = CoordIds.lookup(specials).to_bins()

    def encode(self, text: str) -> list[int]:
        return self._encoding.encode(text, allowed_special=self._specials, disallowed_special=())

    def piece(self, token_id: int) -> str:
        """Empty for an id outside the vocabulary."""
        if not 0 <= token_id < self._encoding.n_vocab:
            return ""
        return self._encoding.decode([token_id], errors="replace")

    @property
    def coord_bins(self) -> Mapping[int, int]:
        return self._coord_bins


@lru_cache(maxsize=1)
def qwen_codec() -> QwenCodec:
    """The one instance of the process; the test is skipped where the vocabulary is not installed."""
    spec = find_spec("dashscope")
    if spec is None or spec.origin is None:
        pytest.skip("dashscope is not installed: its wheel ships the Qwen vocabulary")
    return QwenCodec(Path(spec.origin).parent / "resources" / "qwen.tiktoken")


class TinyCodec:
    """A seeded vocabulary of fused pieces over few characters, greedy longest match: braces stick to everything.

    Pieces hold quotes, braces, brackets, whole keys and parts of the end-of-turn text, so that cuts fall inside
    tokens; one piece (`?}`) does not survive a round trip, as a token with half a character would not.
    """

    _COORDS = tuple(range(0, NUM_BINS, 111))

    def __init__(self, seed: int = 0) -> None:
        rng = random.Random(seed)
        atoms = ['"', "{", "}", "[", "]", ",", ":", " ", "\\", "a", "desc", "bbox_2d", "poly", "object_", "<|im_end|>"]
        fused = {"".join(rng.choices(atoms, k=rng.randint(2, 3))) for _ in range(60)}
        singles = {chr(code) for code in range(32, 127)} | {"\n", "é"}
        self._pieces = sorted(singles | set(atoms) | fused | {'": "', '", "', '": {"', "}, ", "}}", "]}", '"]}'})
        self._lossy = len(self._pieces)
        self._first_coord = self._lossy + 1
        texts = self._pieces + [""] + [coord_token(bin_) for bin_ in self._COORDS]
        self._ids = {text: at for at, text in enumerate(texts) if text}
        longest = sorted(self._ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest)) + "|.", re.DOTALL)

    def encode(self, text: str) -> list[int]:
        """What the vocabulary lacks becomes `a`: such text does not survive a round trip."""
        return [self._ids.get(unit, self._ids["a"]) for unit in self._pattern.findall(text)]

    def piece(self, token_id: int) -> str:
        if 0 <= token_id < len(self._pieces):
            return self._pieces[token_id]
        if token_id == self._lossy:
            return "\ufffd}}"
        at = token_id - self._first_coord
        return coord_token(self._COORDS[at]) if 0 <= at < len(self._COORDS) else ""

    def damage(self, ids: list[int]) -> list[int]:
        """Puts the piece that does not survive a round trip for every `}}`."""
        return [self._lossy if token_id == self._ids["}}"] else token_id for token_id in ids]

    @property
    def vocabulary_size(self) -> int:
        return self._first_coord + len(self._COORDS)

    @cached_property
    def coord_bins(self) -> Mapping[int, int]:
        return {self._first_coord + at: bin_ for at, bin_ in enumerate(self._COORDS)}


class ListedCharCodec:
    """One id per character, as a text and its ids show it; a special token counts as one character."""

    _UNIT = re.compile(r"<\|[a-z_]+[0-9]*\|>|.", re.DOTALL)

    def __init__(self, text: str, ids: list[int]) -> None:
        units = self._UNIT.findall(text)
        assert len(units) == len(ids), f"{len(units)} characters and {len(ids)} ids"
        self._ids = dict(zip(units, ids, strict=True))
        self._texts = {token_id: unit for unit, token_id in self._ids.items()}

    def encode(self, text: str) -> list[int]:
        return [self._ids[unit] for unit in self._UNIT.findall(text)]

    def piece(self, token_id: int) -> str:
        return self._texts.get(token_id, "")

    @cached_property
    def coord_bins(self) -> Mapping[int, int]:
        matches = {token_id: re.fullmatch(r"<\|coord_([0-9]{1,3})\|>", text) for token_id, text in self._texts.items()}
        return {token_id: int(match[1]) for token_id, match in matches.items() if match is not None}
