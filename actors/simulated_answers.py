"""Answers of a model that does not exist: a record's objects, found with a given recall and precision.

A script for `ScriptedEngine`. Seeded by the request, so that a rerun of a request on the same policy version gives the
same answer, and one answer does not depend on those before it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from protocol.contracts import GroundTruth, Record, RolloutRequest, Shape
from protocol.serialization import assistant_text
from protocol.vocab import NUM_BINS

LVIS_LOG_TOKENS, LVIS_LOG_SIGMA, LVIS_MAX_TOKENS = 7.4, 0.75, 11_000
"""Lognormal answer lengths: a median of 1,600 tokens, dense images near 11,000."""
TOKENS_PER_BOX = 31
"""Of Qwen's tokenizer, for an object with a box and a short description (SPEC 3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerModel:
    """What a simulated policy writes."""

    recall: float = 0.6
    """Share of a record's objects that are found."""
    precision: float = 0.8
    """Share of written objects that stand for one of the record's."""
    garbage: float = 0.0
    """Share of answers that are cut off, no JSON, or endless repetition, by equal parts."""
    jitter_bins: int = 3
    """Largest displacement of a found object's coordinates."""

    def __call__(self, request: RolloutRequest, version: int) -> str:
        rng = np.random.default_rng((request.seed, version))
        found = [self._seen(truth, rng) for truth in request.record.objects if rng.random() < self.recall]
        num_spurious = int(rng.poisson(len(found) * (1 / self.precision - 1)))
        text = assistant_text([*found, *(_random_object(rng) for _ in range(num_spurious))])
        return _spoil(text, rng) if rng.random() < self.garbage else text

    def _seen(self, truth: GroundTruth, rng: np.random.Generator) -> GroundTruth:
        shift = rng.integers(-self.jitter_bins, self.jitter_bins + 1, len(truth.shape.bins))
        bins = np.clip(np.asarray(truth.shape.bins) + shift, 0, NUM_BINS - 1)
        return GroundTruth(index=truth.index, desc=truth.desc, shape=Shape(truth.shape.geometry, tuple(bins.tolist())))


def lvis_like_record(index: int) -> Record:
    """A record without an image file; answers about it are as long as answers about LVIS are."""
    rng = np.random.default_rng((0, index))
    tokens = min(rng.lognormal(LVIS_LOG_TOKENS, LVIS_LOG_SIGMA), LVIS_MAX_TOKENS)
    objects = tuple(_random_object(rng, at + 1) for at in range(max(1, int(tokens / TOKENS_PER_BOX))))
    return Record(
        index=index, source=f"simulated:{index + 1}", images=("none.png",), width=1024, height=768, objects=objects
    )


def _random_object(rng: np.random.Generator, index: int = 0) -> GroundTruth:
    low = rng.integers(0, NUM_BINS - 100, 2)
    high = low + rng.integers(20, 100, 2)
    return GroundTruth(
        index=index,
        desc=f"thing {rng.integers(1200)}",
        shape=Shape("bbox_2d", (int(low[0]), int(low[1]), int(high[0]), int(high[1]))),
    )


def _spoil(text: str, rng: np.random.Generator) -> str:
    kind = rng.integers(3)
    if kind == 0:
        return text[: int(rng.integers(1, len(text) + 1))]
    if kind == 1:
        return "I cannot see any objects."
    return text[:-1] + ', "object_1": {"desc": "again"}' * 200
