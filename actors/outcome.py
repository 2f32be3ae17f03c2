"""What an actor tells the driver of its requests: what became of each."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from actors.engine import EngineProgress
from protocol.contracts import RequestKey
from protocol.segments import Segment, SegmentMeta, SegmentRef, SegmentStats


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
    """0 where nothing was generated; an answer has at least its end."""
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


Placed = tuple[Outcome, SegmentRef | None]
"""An outcome, and where its segment is, where it has one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What the driver fetches of a group of answers."""

    outcomes: tuple[Outcome, ...]
    progress: EngineProgress
    """In the place of a heartbeat."""

    def placed(self, segments: Any) -> Iterator[Placed]:
        """The outcomes, those with a `meta` each with its place in the group's segments, whose reference is given."""
        position = itertools.count()
        for outcome in self.outcomes:
            yield outcome, SegmentRef(segments, next(position)) if outcome.meta is not None else None


Group = tuple[tuple[Segment, ...], Report]
"""The segments of those outcomes that have a `meta`, in the same order; and what is said of all."""
