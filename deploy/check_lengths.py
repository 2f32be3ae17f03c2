"""The lengths' part of `rollmatch check`: tokens of every answer and training row against the settings that bound them.

prompt = system and user text in their chat frame, and the image's tokens
answer = all objects of the record, and the end of turn
row    = prompt, answer, and the line break that the template writes after it (and a seam)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from deploy.file_codec import load_codec
from deploy.findings import Finding, Findings, error, note, warning
from protocol.config import RunConfig
from protocol.config.rules import MATCHING
from protocol.contracts import Record
from protocol.errors import ConfigError
from protocol.prompts import resolve_prompts
from protocol.serialization import assistant_text
from protocol.vocab import COORD_TOKEN_PATTERN, END_OF_TURN, TokenCodec

MANY_PIECES = 30_000
"""Different numbered descriptions in a file from which only SAMPLE of its records are counted, of every size and the
largest among them: each description costs an encoding, and a check should take seconds."""
SAMPLE = 1_000
_FRAME = (
    "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n<|vision_start|><|vision_end|>{user}<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""A question as a Qwen3-VL chat template writes it, without the image's tokens. A run asks the template itself, through
transformers, which a check does not import; a test compares the two."""
_SEAM = 1
"""Tokens by which a row exceeds the text in one piece: what is appended to a rollout's prefix is encoded by itself."""


class Lengths(NamedTuple):
    """Tokens of one record."""

    prompt: int
    answer: int
    row: int


class TokenCounter:
    """Counts with the checkpoint's tokenizer; without one, lower bounds: the image, and one token per coordinate.

    A coordinate token ends whatever is merged around it, so the pieces between are counted once each and remembered: in
    most files few of them differ.
    """

    def __init__(self, codec: TokenCodec | None = None, *, system: str = "", user: str = "") -> None:
        self._codec = codec
        self._pieces: dict[str, int] = {}
        self._num_question = 0 if codec is None else len(codec.encode(_FRAME.format(system=system, user=user)))
        self._num_after = 0 if codec is None else self._count("\n") + _SEAM

    @property
    def is_exact(self) -> bool:
        """Whether there is a tokenizer."""
        return self._codec is not None

    def prompt(self, image_tokens: int) -> int:
        """Length of a question about an image of this size."""
        return image_tokens + self._num_question

    def measure(self, record: Record, image_tokens: int) -> Lengths:
        """Lengths of a record with its ground truth as the answer."""
        pieces = COORD_TOKEN_PATTERN.split(assistant_text(record.objects) + END_OF_TURN)[::2]
        num_coords = sum(len(truth.shape.bins) for truth in record.objects)
        prompt, answer = self.prompt(image_tokens), num_coords + sum(map(self._count, pieces))
        return Lengths(prompt, answer, prompt + answer + self._num_after)

    def _count(self, piece: str) -> int:
        if self._codec is None:
            return 0
        if piece not in self._pieces:
            self._pieces[piece] = len(self._codec.encode(piece))
        return self._pieces[piece]


def token_counter(config: RunConfig) -> tuple[TokenCounter, list[Finding]]:
    """With the tokenizer of `model.model` and the run's prompts, where both can be read."""
    try:
        system, user = resolve_prompts(config)
        return TokenCounter(load_codec(config.model.model), system=system, user=user), []
    except ConfigError:
        return TokenCounter(), []  # reported with the settings or the model
    except Exception as raised:  # the tokenizers library raises no narrower class for a file that it cannot read
        text = (
            f"{config.model.model}/tokenizer.json cannot be opened ({raised}), so tokens were not counted; replace it"
        )
        return TokenCounter(), [warning("model.model", text)]


class FileLengths:
    """Collects the lengths of a file's records and says how they compare with the settings."""

    def __init__(self, config: RunConfig, path: str, file: str, num_records: int, counter: TokenCounter) -> None:
        """`num_records`: of the whole file, of which not all may be added."""
        self._config = config
        self._path = path
        self._file = file
        self._num_records = num_records
        self._counter = counter
        self._records: list[tuple[Record, int]] = []
        """With the tokens of their images."""
        self._prompts = Findings(1)
        self._model_len = config.matching.vllm.max_model_len if config.matching.rollout_backend == "vllm" else None

    def add(self, record: Record, image_tokens: int) -> None:
        self._records.append((record, image_tokens))
        prompt = self._counter.prompt(image_tokens)
        if self._model_len is not None and prompt >= self._model_len:
            what = "the prompt with its image costs" if self._counter.is_exact else "the image alone costs"
            text = f"{what} {prompt} tokens, vllm.max_model_len is {self._model_len}; raise it, or shrink the image"
            self._prompts.add(error(record.source, text))

    def findings(self) -> Iterator[Finding]:
        """One note, and a finding for each setting that is too small."""
        if not self._records:
            return
        sample = self._sample()
        counted = [self._counter.measure(*each) for each in sample]
        answers, rows = [found.answer for found in counted], [found.row for found in counted]
        matching, length = self._config.matching, self._config.global_max_length
        bound = "" if self._counter.is_exact else "lower bounds, for want of a tokenizer: "
        of = "" if len(sample) == len(self._records) else f" (a sample of {len(self._records)}, of every size)"
        model_len = "" if self._model_len is None else f", vllm.max_model_len {self._model_len}"
        yield note(
            self._path,
            f"{bound}of {len(counted)} records{of} an answer with all objects has {_spread(answers)} tokens "
            f"(max_new_tokens is {matching.max_new_tokens}), a training row {_spread(rows)} "
            f"(global_max_length is {length}{model_len})",
        )
        yield from self._prompts.folded(self._path)
        incomplete = "no rollout can write them in full"
        yield from self._over(f"{MATCHING}.max_new_tokens", matching.max_new_tokens, "answers", answers, incomplete)
        if self._model_len is not None:
            wholes = [found.prompt + found.answer for found in counted if found.prompt < self._model_len]
            path = f"{MATCHING}.vllm.max_model_len"
            yield from self._over(path, self._model_len, "prompts with their answer", wholes, incomplete)
        if self._path != "custom.train_jsonl":
            return
        if min(rows) > length and len(rows) == len(self._records):
            text = f"is {length}, and no record of {self._file} is that short; raise it, {self._needed(max(rows))}"
            yield error("global_max_length", text)
        else:
            yield from self._over("global_max_length", length, "training rows", rows, "they would be quarantined")
            yield from self._ends_the_run(sum(row > length for row in rows) / len(rows))

    def _sample(self) -> Sequence[tuple[Record, int]]:
        """All, or every so many from the largest down: dense records may be few, or lie at regular places."""
        pieces = {(at, truth.desc) for record, _ in self._records for at, truth in enumerate(record.objects)}
        if len(pieces) <= MANY_PIECES:
            return self._records
        by_size = sorted(self._records, key=lambda each: _size(each[0]), reverse=True)
        return by_size[:: math.ceil(len(by_size) / SAMPLE)]

    def _over(self, path: str, limit: int, what: str, lengths: Sequence[int], effect: str) -> Iterator[Finding]:
        num_over = sum(length > limit for length in lengths)
        if num_over:
            share = f"{100 * num_over / len(lengths):.3g} % of the {what} in {self._file}"
            of = f"{num_over} of {len(lengths)} that were counted"
            needed = self._needed(max(lengths))
            yield warning(path, f"is {limit}, and {share} ({of}) are longer: {effect}; raise it, {needed}")

    def _ends_the_run(self, share: float) -> Iterator[Finding]:
        """What is quarantined only record by record, over hours, may be too much for the run from the beginning."""
        config, most = self._config, self._config.quarantine.max_records
        windows = math.ceil(config.num_optimizer_steps(self._num_records) / config.m_steps)
        asked = min(self._num_records, windows * config.training.effective_batch_size)
        expected = round(share * asked)
        if config.template.truncation_strategy == "delete" and expected > most:
            yield warning(
                "quarantine.max_records",
                f"is {most}, and about {expected} of the {asked} records that the run asks for would be quarantined "
                "for their length, which would end it: raise global_max_length, or this limit",
            )

    def _needed(self, length: int) -> str:
        return f"{length} would fit all that were counted" if self._counter.is_exact else f"at least to {length}"


def _size(record: Record) -> float:
    """About the tokens of its answer: two for a coordinate and what follows it, one for four letters."""
    return sum(2 * len(truth.shape.bins) + len(truth.desc) / 4 for truth in record.objects)


def _spread(lengths: Sequence[int]) -> str:
    middle, high, most = np.percentile(lengths, (50, 99, 100), method="higher")
    return f"{middle} (p50), {high} (p99), {most} (longest)"
