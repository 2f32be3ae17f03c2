"""An engine that answers from a script: for tests, fault injection and simulation, never for a claim about a real one.

It obeys `RolloutEngine` to the letter, as the contract suite shows: answers leave token by token over steps, weights
load between two steps, every completion carries the versions of its first and last token. With a `Pace` its steps take
the time that a real engine's would, on a clock that a test may replace.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from actors.engine import LoadReport, check_repeat_guard
from actors.images import open_image
from actors.weight_buckets import verify_buckets
from protocol.contracts import Completion, RolloutRequest
from protocol.errors import PromptTooLongError
from protocol.repeat_guard import RepeatSettings, num_tokens_at_verdict
from protocol.vocab import END_OF_TURN, TokenCodec
from protocol.weights import Bucket, WeightsManifest

Script = Callable[[RolloutRequest, int], str]
"""(request, policy version) → the answer's text, without the end-of-turn token."""


class Clock(Protocol):
    """Where simulated work spends its time."""

    def sleep(self, seconds: float, /) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long an engine's work takes: a step of one token costs the same however many sequences run, plus a share
    for each of them, as decoding is bound by reading weights first and by reading key-value caches then."""

    token_s: float = 0.0
    """Seconds per token of a step."""
    sequence_s: float = 0.0
    """Seconds added per token and running sequence."""
    prefill_s: float = 0.0
    """Seconds to take in one prompt and its image."""
    load_s: float = 0.0
    """Seconds to load a publish."""

    def step_s(self, num_tokens: int, num_running: int, num_started: int) -> float:
        """Seconds of a step that emits `num_tokens` of each running answer and takes in new prompts."""
        return num_tokens * (self.token_s + self.sequence_s * num_running) + self.prefill_s * num_started


INSTANT = Pace()
GPU_LIKE = Pace(token_s=0.012, sequence_s=0.0001, prefill_s=0.06, load_s=1.5)
"""The order of magnitude of an 8B model on one data-centre GPU: 40 tokens/s alone, 2,500 tokens/s in a batch of 64.
Assumed, not measured."""


@dataclass(slots=True)
class _Running:
    request: RolloutRequest
    prompt: list[int]
    answer: list[int]
    first_version: int
    emitted: int = 0


class ScriptedEngine:
    """Each step emits `tokens_per_step` tokens of every running answer."""

    def __init__(
        self,
        codec: TokenCodec,
        script: Script,
        *,
        prompt_ids: Sequence[int] = (1, 2, 3),
        tokens_per_step: int = 16,
        max_new_tokens: int = 512,
        max_num_seqs: int = 1 << 30,
        pace: Pace = INSTANT,
        clock: Clock = time,
        repeat: RepeatSettings | None = None,
        image_tokens: Callable[[RolloutRequest], int] | None = None,
        max_model_len: int = 1 << 30,
    ) -> None:
        """A request's image is read, and its tokens added to the prompt, only where `image_tokens` counts them."""
        self._codec = codec
        self._script = script
        self._prompt_ids = list(prompt_ids)
        self._tokens_per_step = tokens_per_step
        self._max_new_tokens = max_new_tokens
        self._max_num_seqs = max_num_seqs
        self._pace = pace
        self._clock = clock
        self._repeat = repeat
        self._image_tokens = image_tokens
        self._max_model_len = max_model_len
        self._waiting: deque[tuple[RolloutRequest, list[int]]] = deque()
        self._running: list[_Running] = []
        self._version = 0

    @property
    def version(self) -> int:
        return self._version

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + len(self._running)

    def prepare(self, request: RolloutRequest) -> list[int]:
        prompt = self._prompt(request)
        if len(prompt) >= self._max_model_len:
            raise PromptTooLongError(
                f"{request.record.source}: the prompt has {len(prompt)} tokens, the limit is {self._max_model_len}; "
                "raise max_model_len or drop the record"
            )
        return prompt

    def submit(self, request: RolloutRequest, prepared: list[int]) -> None:
        self._waiting.append((request, prepared))

    def step(self) -> list[Completion]:
        started = self._start_waiting()
        if not self._running:
            return []
        self._sleep(self._pace.step_s(self._tokens_per_step, len(self._running), started))
        for running in self._running:
            running.emitted += self._tokens_per_step
        finished = [running for running in self._running if running.emitted >= len(running.answer)]
        self._running = [running for running in self._running if running.emitted < len(running.answer)]
        return [self._completion(running) for running in finished]

    def load_weights(self, manifest: WeightsManifest, buckets: Sequence[Bucket]) -> LoadReport:
        checksums = verify_buckets(manifest, buckets)
        self._sleep(self._pace.load_s)
        self._version = manifest.version
        return LoadReport(
            version=self._version,
            bucket_checksums=checksums,
            load_seconds=self._pace.load_s,
        )

    def sleep(self) -> None:
        """There is nothing to free."""

    def abort_all(self) -> None:
        self._waiting.clear()
        self._running.clear()

    def close(self) -> None:
        self.abort_all()

    def _prompt(self, request: RolloutRequest) -> list[int]:
        if self._image_tokens is None:
            return self._prompt_ids
        open_image(request)
        return self._prompt_ids + [self._prompt_ids[-1]] * self._image_tokens(request)

    def _start_waiting(self) -> int:
        free = min(self._max_num_seqs - len(self._running), len(self._waiting))
        for _ in range(free):
            request, prompt = self._waiting.popleft()
            self._running.append(_Running(request, prompt, self._answer(request, prompt), self._version))
        return free

    def _answer(self, request: RolloutRequest, prompt: list[int]) -> list[int]:
        """What the script says, ended where the repeat guard or the limit of tokens ends it."""
        answer = self._codec.encode(self._script(request, self._version) + END_OF_TURN)
        if self._repeat is not None:
            pieces = ((token, self._codec.piece(token)) for token in answer)
            verdict = num_tokens_at_verdict(self._repeat, prompt, pieces)
            if verdict is not None and verdict < len(answer):
                answer = answer[:verdict] + answer[-1:]
        return answer[: min(self._max_new_tokens, self._max_model_len - len(prompt))]

    def _completion(self, running: _Running) -> Completion:
        prompt, answer = running.prompt, running.answer
        return Completion(
            key=running.request.key,
            prompt_token_ids=np.asarray(prompt, dtype=np.int32),
            token_ids=np.asarray(answer, dtype=np.int32),
            finish_reason="stop" if self._codec.piece(answer[-1]) == END_OF_TURN else "length",
            first_version=running.first_version,
            last_version=self._version,
            repeat_terminated=check_repeat_guard(self._repeat, prompt, answer, self._codec),
        )

    def _sleep(self, seconds: float) -> None:
        if seconds > 0:
            self._clock.sleep(seconds)
