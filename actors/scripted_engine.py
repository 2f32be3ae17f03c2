"""An engine that answers from a script: for tests, fault injection and simulation, never for a claim about a real one.

It obeys `RolloutEngine` to the letter: answers leave token by token over steps, weights load between two steps, every
completion carries the versions of its first and last token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from actors.engine import Bucket, LoadReport
from protocol.checksums import bucket_checksum
from protocol.contracts import Completion, RolloutRequest, WeightsManifest
from protocol.vocab import END_OF_TURN, TokenCodec

Script = Callable[[RolloutRequest, int], str]
"""(request, policy version) → the answer's text, without the end-of-turn token."""


@dataclass(slots=True)
class _Running:
    request: RolloutRequest
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
    ) -> None:
        self._codec = codec
        self._script = script
        self._prompt_ids = np.asarray(prompt_ids, dtype=np.int32)
        self._tokens_per_step = tokens_per_step
        self._max_new_tokens = max_new_tokens
        self._running: list[_Running] = []
        self._version = 0

    @property
    def version(self) -> int:
        return self._version

    @property
    def num_unfinished(self) -> int:
        return len(self._running)

    def submit(self, request: RolloutRequest) -> None:
        answer = self._codec.encode(self._script(request, self._version) + END_OF_TURN)
        self._running.append(_Running(request, answer[: self._max_new_tokens], self._version))

    def step(self) -> list[Completion]:
        for running in self._running:
            running.emitted += self._tokens_per_step
        finished = [running for running in self._running if running.emitted >= len(running.answer)]
        self._running = [running for running in self._running if running.emitted < len(running.answer)]
        return [self._completion(running) for running in finished]

    def _completion(self, running: _Running) -> Completion:
        return Completion(
            key=running.request.key,
            prompt_token_ids=self._prompt_ids,
            token_ids=np.asarray(running.answer, dtype=np.int32),
            finish_reason="length" if len(running.answer) == self._max_new_tokens else "stop",
            first_version=running.first_version,
            last_version=self._version,
        )

    def load_weights(self, manifest: WeightsManifest, buckets: Sequence[Bucket]) -> LoadReport:
        self._version = manifest.version
        return LoadReport(
            version=self._version,
            bucket_checksums=tuple(bucket_checksum(bucket) for bucket in buckets),
            num_tensors=len(manifest.tensors),
            load_seconds=0.0,
        )

    def abort_all(self) -> None:
        self._running.clear()

    def close(self) -> None:
        self._running.clear()
