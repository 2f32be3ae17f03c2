"""What an engine really serves, beyond the bytes that it received: two engines are compared.

    live     started on the start checkpoint, then loaded the export through the sync path
    fresh    started on the export

Compared are vLLM's own digests of the tensors in the model, greedy answers token by token, and the probabilities of the
likeliest tokens at every position. On CPU the digests cannot see linear weights, which are repacked: answers and
probabilities, which come from all weights, can.

Who waits: `deploy.attest`, for one `AttestedEngine` at a time, each call with a deadline. The engine waits for nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from actors.codec import ChatFrame, HubCodec
from actors.engine import LoadReport
from actors.rollout_actor import load_processor
from actors.settings import ActorSettings
from protocol.contracts import IntArray, RolloutRequest
from protocol.weights import WeightsManifest

LOGPROB_TOLERANCE = 1e-3
"""Nats. Equal weights give equal numbers on CPU; a GPU's sums may come in another order. Stale weights are far off."""


@dataclass(frozen=True, slots=True)
class Probe:
    """One greedy answer."""

    name: str
    token_ids: IntArray
    """[L]"""
    logprobs: npt.NDArray[np.float32]
    """[L, K] of the K likeliest tokens at each position, descending."""


@dataclass(frozen=True, slots=True)
class Served:
    """What one engine serves."""

    checksums: Mapping[str, str]
    """vLLM's digest of each tensor in the model, by name."""
    probes: tuple[Probe, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """How two engines differ; `same` is the verdict."""

    num_weights: int
    differing_weights: tuple[str, ...]
    """Also those that only one engine has."""
    num_answers: int
    differing_answers: tuple[str, ...]
    max_logprob_difference: float
    """Over positions with the same tokens before them."""

    @property
    def same(self) -> bool:
        close = self.max_logprob_difference <= LOGPROB_TOLERANCE
        return not self.differing_weights and not self.differing_answers and close


class AttestedEngine:
    """A Ray actor of its own kind: it probes, which a rollout actor never does."""

    def __init__(self, settings: ActorSettings) -> None:
        from actors.vllm_engine import VllmEngine

        processor = load_processor(settings.engine.model)
        frame = ChatFrame(processor, settings.system_prompt, settings.user_prompt)
        codec = HubCodec(processor.tokenizer)
        self._engine = VllmEngine(settings.engine, settings.decode, frame, codec, processor)

    def load(self, manifest: WeightsManifest, refs: Sequence[Any]) -> LoadReport:
        """As a rollout actor loads a publish."""
        import ray

        return self._engine.load_weights(manifest, ray.get(list(refs)))

    def served(self, requests: Sequence[RolloutRequest]) -> Served:
        """Digests, and one greedy answer per request, one at a time: batches would change the order of sums."""
        return Served(self._engine.weight_checksums(), tuple(self._engine.probe(request) for request in requests))


def compare(one: Served, other: Served) -> Comparison:
    """Weights by name, answers in order; both engines were asked the same."""
    assert [probe.name for probe in one.probes] == [probe.name for probe in other.probes]
    names = sorted(one.checksums.keys() | other.checksums.keys())
    pairs = list(zip(one.probes, other.probes, strict=True))
    return Comparison(
        num_weights=len(names),
        differing_weights=tuple(name for name in names if one.checksums.get(name) != other.checksums.get(name)),
        num_answers=len(pairs),
        differing_answers=tuple(a.name for a, b in pairs if not np.array_equal(a.token_ids, b.token_ids)),
        max_logprob_difference=max((difference for a, b in pairs for difference in _differences(a, b)), default=0.0),
    )


def _differences(one: Probe, other: Probe) -> Iterator[float]:
    """Largest difference of each position up to the first where the answers part; infinite where one is no number."""
    for at in range(min(len(one.token_ids), len(other.token_ids))):
        a, b = one.logprobs[at], other.logprobs[at]
        with np.errstate(invalid="ignore"):  # equal infinities
            difference = float(np.where(a == b, 0.0, np.abs(a - b)).max())
        yield difference if np.isfinite(difference) else np.inf
        if one.token_ids[at] != other.token_ids[at]:
            return
