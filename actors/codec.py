"""The checkpoint's own tokenizer behind the protocol's `TokenCodec`, and the chat frame around an answer.

The one door to transformers on the rollout side that needs no model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol.errors import ConfigError
from protocol.vocab import END_OF_TURN, CoordIds


class HubCodec:
    """`TokenCodec` over a Hugging Face tokenizer. Pieces are decoded once and kept: the parser asks per token."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._pieces: dict[int, str] = {}
        self._coord_bins = CoordIds.lookup(tokenizer.get_vocab()).to_bins()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def piece(self, token_id: int) -> str:
        piece = self._pieces.get(token_id)
        if piece is None:
            piece = self._tokenizer.decode([token_id], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            self._pieces[token_id] = piece
        return piece

    @property
    def coord_bins(self) -> Mapping[int, int]:
        return self._coord_bins


class ChatFrame:
    """What stands before and after the answer: the prompt's text and the end-of-turn suffix.

    Image before text (SPEC A15). The suffix is read from the checkpoint's chat template, never assumed.
    """

    def __init__(self, processor: Any, system_prompt: str, user_prompt: str) -> None:
        marker = "ANSWER"
        question: list[dict[str, Any]] = [
            {"role": "system", "content": system_prompt},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": user_prompt}]},
        ]
        answer = {"role": "assistant", "content": [{"type": "text", "text": marker}]}
        self.prompt_text: str = processor.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
        whole: str = processor.apply_chat_template([*question, answer], tokenize=False)
        head, found, suffix = whole.rpartition(marker)
        if not found or head != self.prompt_text or not suffix.startswith(END_OF_TURN):
            raise ConfigError(
                f"model.model: the chat template closes an answer with {suffix[:40]!r} after a prompt that ends with "
                f"{head[-40:]!r}, expected {END_OF_TURN} after the generation prompt; use a Qwen3-VL chat template"
            )
        self.suffix_ids: list[int] = processor.tokenizer.encode(suffix, add_special_tokens=False)
