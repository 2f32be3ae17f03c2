"""What an actor tells the driver of its requests: what became of each."""

from __future__ import annotations

from dataclasses import dataclass

from actors.engine import EngineProgress
from protocol.contracts import RequestKey
from protocol.segments import Segment, SegmentMeta, SegmentStats


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one request: exactly one of `meta`, `evaluated` and `failure` is set."""

    key: RequestKey
    meta: SegmentMeta | None = None
    """A trainable segment is in the group's segments."""
    evaluated: SegmentStats | None = None
    failure: str | None = None
    """Why this record can never work: `reason: detail` for the quarantine file."""
    new_tokens: int = 0
    finish_reason: str = ""
    parse_match_s: float = 0.0
    encode_s: float = 0.0
    """Building the teacher-forced segment."""
    latency_s: float = 0.0
    """From `submit` to the last token: waiting and decoding."""
    trace: bytes | None = None
    """An encoded `RolloutTrace`, where `ActorSettings.trace` and the request ask for it."""
    actor: str = ""
    """Name of its slot in the pool."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the driver fetches of a group of answers."""

    outcomes: tuple[Outcome, ...]
    progress: EngineProgress
    """In the place of a heartbeat."""


Group = tuple[tuple[Segment, ...], Report]
"""The segments of those outcomes that have a `meta`, in the same order; and what is said of all."""
