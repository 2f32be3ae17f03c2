"""When a rollout is judged degenerate and must end (SPEC 4.3 and A16). One decision for every backend.

A logits processor feeds each new token to a `RepeatGuard` and forces end-of-turn once it has spoken.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

OBJECT_KEY = re.compile(r'"object_[0-9]+"\s*:')
"""A written key on decoded text; in byte-pair tokens no fixed sequence of ids stands for it."""
_MAX_OPEN_TEXT = 64
"""Characters kept of a key that may still be incomplete."""


class RepeatReason(StrEnum):
    """What was found, in the order in which it is looked for."""

    OBJECT_KEYS = "object_keys"
    TOKEN_RUN = "token_run"
    NGRAM = "ngram"


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatSettings:
    """Limits; the defaults are the runbook's."""

    min_new_tokens: int = 256
    """Nothing is judged before this many generated tokens."""
    max_consecutive_token_repeats: int = 64
    """Equal tokens in a row; 0 switches the check off."""
    ngram_size: int = 64
    """Tokens of the block whose repetition is watched; 0 switches the check off."""
    ngram_repeats: int = 2
    """Equal blocks in a row; below 2 switches the check off."""
    max_object_keys: int | None = None
    """Object keys; None: no limit."""


class KeyCounter:
    """Counts object keys in text that arrives piece by piece."""

    def __init__(self, pattern: re.Pattern[str] = OBJECT_KEY) -> None:
        self.count = 0
        self._pattern = pattern
        self._open = ""

    def feed(self, piece: str) -> int:
        """Takes the next piece of text; returns the keys so far."""
        text = self._open + piece
        end = 0
        for match in self._pattern.finditer(text):
            self.count += 1
            end = match.end()
        self._open = text[max(end, len(text) - _MAX_OPEN_TEXT) :]
        return self.count


class RepeatGuard:
    """Watches one row, token by token, in constant time. A reason, once given, stays."""

    def __init__(self, settings: RepeatSettings, prompt_ids: Sequence[int]) -> None:
        self._settings = settings
        self._recent = deque(prompt_ids[-settings.ngram_size :], maxlen=max(1, settings.ngram_size))
        self._last = prompt_ids[-1] if len(prompt_ids) else None
        self._run = next((i for i, token in enumerate(reversed(prompt_ids)) if token != self._last), len(prompt_ids))
        self._periodic = 0
        self._keys = KeyCounter()
        self.num_new = 0
        self.reason: RepeatReason | None = None

    def feed(self, token_id: int, piece: str) -> RepeatReason | None:
        """Takes one token and its text; the verdict after it."""
        self.num_new += 1
        self._run = self._run + 1 if token_id == self._last else 1
        repeats = len(self._recent) == self._recent.maxlen and self._recent[0] == token_id
        self._periodic = self._periodic + 1 if repeats else 0
        self._recent.append(token_id)
        self._last = token_id
        self._keys.feed(piece)
        if self.reason is None and self.num_new >= self._settings.min_new_tokens:
            self.reason = self._judge()
        return self.reason

    def _judge(self) -> RepeatReason | None:
        limits = self._settings
        if limits.max_object_keys is not None and self._keys.count >= limits.max_object_keys:
            return RepeatReason.OBJECT_KEYS
        if 0 < limits.max_consecutive_token_repeats <= self._run:
            return RepeatReason.TOKEN_RUN
        size, repeats = limits.ngram_size, limits.ngram_repeats
        # `repeats` equal blocks: each token of all but the first equals the one a block before it.
        if size > 0 and repeats >= 2 and self.num_new >= size * repeats and self._periodic >= size * (repeats - 1):
            return RepeatReason.NGRAM
        return None


def num_tokens_at_verdict(
    settings: RepeatSettings, prompt_ids: Sequence[int], answer: Iterable[tuple[int, str]]
) -> int | None:
    """Generated tokens after which the guard speaks, or None; `answer` holds the tokens and their text."""
    guard = RepeatGuard(settings, prompt_ids)
    return next((guard.num_new for token, piece in answer if guard.feed(token, piece) is not None), None)
