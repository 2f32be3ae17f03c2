"""The desc monitor (SPEC 16): do the descriptions of matched pairs say the same? Metrics only.

It runs in the actor, in the thread of the call that parses and matches, while the engine goes on: descriptions never
cross a process, and their counters are summed like all others. The call waits for the encoder, which is the actor's
own; a vector is remembered per text, so after the first windows a comparison is a look-up. Who waits for the call is
the driver, within `rollout.request_timeout_s`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from protocol.config import RunConfig
from protocol.desc import count_exact, normalise_desc

_TRAINING_PAIRS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class DescSettings:
    """See `rollout_matching.desc_monitor`."""

    semantic: bool = False
    model: str = ""
    threshold: float = 0.6
    device: str = "cpu"
    batch_size: int = 64
    max_length: int = 64
    max_pairs: int = 0

    @classmethod
    def from_config(cls, config: RunConfig) -> DescSettings:
        """The actor's share; descriptions are always compared exactly, that costs nothing."""
        monitor = config.matching.desc_monitor
        return cls(
            semantic=monitor.enabled and monitor.mode != "exact",
            model=monitor.semantic_model,
            threshold=monitor.semantic_threshold,
            device=monitor.semantic_device,
            batch_size=monitor.semantic_batch_size,
            max_length=monitor.semantic_max_length,
            max_pairs=monitor.max_pairs,
        )


class Encoder(Protocol):
    """`text_encoder.TextEncoder` in production."""

    def similarities(self, pairs: Sequence[tuple[str, str]]) -> list[float]: ...


class DescMonitor:
    """Compares pairs of (predicted, true) descriptions."""

    def __init__(self, settings: DescSettings, encoder: Encoder | None = None) -> None:
        """Loads the encoder where semantics are asked for; ConfigError when that fails."""
        self._settings = settings
        self._encoder = encoder
        if encoder is None and settings.semantic:
            from actors.text_encoder import TextEncoder

            self._encoder = TextEncoder(
                settings.model,
                device=settings.device,
                batch_size=settings.batch_size,
                max_length=settings.max_length,
            )

    def compare(self, pairs: Sequence[tuple[str, str]], *, evaluates: bool) -> dict[str, Any]:
        """The `desc_*` fields of `SegmentStats` over the first `max_pairs` pairs."""
        most = self._settings.max_pairs or (None if evaluates else _TRAINING_PAIRS)
        looked_at = pairs[:most]
        exact = count_exact(looked_at)
        found: dict[str, Any] = {"desc_pairs_total": exact.total, "desc_exact_ok": exact.exact}
        if self._encoder is None:
            return found
        texts = [(normalise_desc(predicted), normalise_desc(true)) for predicted, true in looked_at]
        said = [pair for pair in texts if all(pair)]
        cosines = self._encoder.similarities(said) if said else []
        threshold = self._settings.threshold
        similar = sum(a == b or cosine >= threshold for (a, b), cosine in zip(said, cosines, strict=True))
        return found | {
            "desc_sem_segments": 1,
            "desc_sem_ok": similar,
            "desc_sem_sim_sum": sum(cosines),
            "desc_sem_sim_count": len(cosines),
        }
