"""Who was busy when: spans in `events.jsonl`, from which the report draws its timeline.

    {"time": ..., "kind": "span", "lane": "driver", "name": "rollout", "start": 1760000000.1, "end": 1760000004.7}
    {"time": ..., "kind": "span", "lane": "actor-0", "name": "generate", "start": ..., "end": ..., "rollouts": 16}

    {"time": ..., "kind": "phase", "name": "rollout", "waiting_for": "12 of 32 segments", "since": 1760000000.1}

Lanes are `driver` (the loop's phases) and one per actor (`generate`, `parse`). Times are Unix seconds of the driver's
clock. What each learner rank did is in the loop's own `optimizer_step` and `publish` events.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

MERGE_GAP_S = 0.02
"""Spans closer than this are one: parsing 32 answers is one bar, not 32."""

TELL_EVERY_S = 5.0
"""What the loop waits for is written this often, for the live view."""

Emit = Callable[..., None]


class Span(NamedTuple):
    """Unix seconds."""

    start: float
    end: float


def merge_spans(spans: Iterable[Span], gap_s: float = MERGE_GAP_S) -> list[Span]:
    """The union of the spans, in order; what is closer than `gap_s` is joined.

    `merge_spans([Span(0, 2), Span(1, 3), Span(5, 6)])` → `[Span(0, 3), Span(5, 6)]`.
    """
    merged: list[Span] = []
    for span in sorted(spans):
        if merged and span.start <= merged[-1].end + gap_s:
            merged[-1] = Span(merged[-1].start, max(merged[-1].end, span.end))
        else:
            merged.append(span)
    return merged


class Timeline:
    """Turns what the observer hears into span events. `emit(kind, **fields)` writes one."""

    def __init__(self, emit: Emit, clock: Callable[[], float] = time.time) -> None:
        self._emit = emit
        self._clock = clock
        self._phase: tuple[str, float] | None = None
        self._told = float("-inf")
        self._generating: dict[str, list[Span]] = {}
        self._parsing: dict[str, list[Span]] = {}

    def phase(self, name: str, waiting_for: str = "") -> None:
        """The loop is in `name` now; called as often as it polls. What it waits for is written every few seconds."""
        now = self._clock()
        if self._phase is None or self._phase[0] != name:
            self._close_phase()
            self._phase, self._told = (name, now), float("-inf")
        if now - self._told >= TELL_EVERY_S:
            self._told = now
            self._emit("phase", name=name, waiting_for=waiting_for, since=round(self._phase[1], 4))

    def answered(self, actor: str, latency_s: float, parse_s: float) -> None:
        """An actor's answer arrived: `latency_s` from call to last token, then `parse_s` of parsing and matching."""
        now = self._clock()
        done = now - parse_s
        self._generating.setdefault(actor, []).append(Span(done - latency_s, done))
        self._parsing.setdefault(actor, []).append(Span(done, now))

    def flush(self) -> None:
        """Writes what the actors did since the last flush."""
        for name, lanes in (("generate", self._generating), ("parse", self._parsing)):
            for actor, spans in lanes.items():
                ends = sorted(span.end for span in spans)
                for span in merge_spans(spans):
                    inside = bisect_right(ends, span.end) - bisect_left(ends, span.start)
                    self._span(actor, name, span, rollouts=inside)
            lanes.clear()

    def close(self) -> None:
        """Writes what is open."""
        self.flush()
        self._close_phase()
        self._phase = None

    def _close_phase(self) -> None:
        if self._phase is not None:
            self._span("driver", self._phase[0], Span(self._phase[1], self._clock()))

    def _span(self, lane: str, name: str, span: Span, **fields: Any) -> None:
        self._emit("span", lane=lane, name=name, start=round(span.start, 4), end=round(span.end, 4), **fields)
