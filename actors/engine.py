"""What the rest of the rollout side knows of an inference engine.

    prepare ──► submit ──► [waiting | running] ──step──► Completion
                                   ▲
                 load_weights ─────┘ only between two steps

An engine is owned and stepped by one thread; `prepare` alone may run in another. Weights change only inside
`load_weights`, so every token of a completion has a policy version, and the engine reports the first and the last of
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from protocol.contracts import Completion, RolloutRequest
from protocol.errors import EngineError
from protocol.repeat_guard import RepeatSettings, num_tokens_at_verdict
from protocol.vocab import TokenCodec
from protocol.weights import Bucket, WeightsManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What an engine says about the weights it just loaded."""

    version: int
    bucket_checksums: tuple[str, ...]
    """Recomputed from the bytes that were handed to the model's loader."""
    load_seconds: float
    """Checking the bytes and loading them."""
    resume_seconds: float = 0.0
    """From loaded to ready for the next request: dropping what older weights had computed."""
    fetch_seconds: float = 0.0
    """Getting the buckets from the object store."""
    engine: str = ""
    """Name of its slot in the pool, which fills it in, as it does `ended`."""
    ended: float = 0.0
    """Unix seconds when the driver had the report."""

    @property
    def busy_seconds(self) -> float:
        """Fetching, checking, loading and resuming: without the wait, in which the engine still generates."""
        return self.fetch_seconds + self.load_seconds + self.resume_seconds

    def as_event(self) -> dict[str, Any]:
        """What events.jsonl holds of it; version and checksums are the publish's, or it would not be attested."""
        return {"name": self.engine, "seconds": self.busy_seconds, "ended": self.ended}


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProgress:
    """Whether the engine works, and on how much: a heartbeat, or part of a group's report."""

    num_steps: int
    """Scheduler steps and weight loads since the start."""
    running: int
    """Requests."""


class RolloutEngine(Protocol):
    """One door per heavy library implements this."""

    @property
    def version(self) -> int:
        """Policy version that the engine itself reports."""
        ...

    @property
    def num_unfinished(self) -> int:
        """Requests submitted and not yet completed."""
        ...

    def prepare(self, request: RolloutRequest) -> Any:
        """Whatever `submit` needs of a request that no weights change: image read, prompt in tokens. One thread at a
        time, which need not be the one that steps. DataFailure when its image or its length can never work."""
        ...

    def submit(self, request: RolloutRequest, prepared: Any) -> None:
        """Queues a request. DataFailure when its length can never work."""
        ...

    def step(self) -> list[Completion]:
        """One scheduler step; the completions that it finished. EngineError when the engine failed."""
        ...

    def load_weights(self, manifest: WeightsManifest, buckets: Sequence[Bucket]) -> LoadReport:
        """Loads a published version, also while requests run: they go on with the new weights, and what the old ones
        computed for them is computed again. SyncError when bytes or version differ from the manifest."""
        ...

    def sleep(self) -> None:
        """Frees the device while nothing is running; the next request or publish wakes the engine. Idempotent."""
        ...

    def abort_all(self) -> None:
        """Forgets every request that is not completed."""
        ...

    def close(self) -> None:
        """Releases the engine; idempotent."""
        ...


def check_repeat_guard(
    settings: RepeatSettings | None, prompt_ids: Sequence[int], answer: Sequence[int], codec: TokenCodec
) -> bool:
    """Whether the repeat guard ended this answer; EngineError when it should have and the engine went on.

    The guard acts inside the backend's sampler. Its decision is a function of the tokens, so it is made once more here,
    where the answer ends, whatever process the sampler runs in.
    """
    if settings is None:
        return False
    verdict = num_tokens_at_verdict(settings, prompt_ids, ((token, codec.piece(token)) for token in answer))
    if verdict is None or verdict == len(answer):
        return False
    if verdict < len(answer) - 1:
        raise EngineError(
            f"the repeat guard judged the answer after {verdict} tokens and the engine wrote {len(answer)}; "
            "its logits processor did not act: restart the engine, or set repeat_terminate.enabled to false"
        )
    return True
