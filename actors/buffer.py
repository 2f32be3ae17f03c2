"""Finished segments between the rollout actors and the learner: references, lengths, versions and leases.

The driver holds this buffer; arrays stay in the object store, so a reference is opaque here and no Ray is imported.

                  put                     take                    release
    (actor) ───────────────►  READY  ───────────────►  TAKEN  ───────────────►  gone
                                ▲                        │
                                └────────────────────────┘
                                         requeue

- An entry keeps its slot and its bytes while it is TAKEN: the learner's step has not used the capacity up before
  `release`, and a learner that dies must find the segments again (`requeue`).
- `take` goes by the order of the requests, not of the answers, and does not pass a request that is still running: the
  staleness bound of `protocol.staleness` needs windows in request order, and which actor was faster must not change
  what is trained.
- Only `SegmentBuffer` moves a state, and only along these arrows.

One driver thread owns the buffer: it is not locked.
"""

from __future__ import annotations

import time
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from protocol.contracts import RequestKey
from protocol.errors import ContractError
from protocol.segments import SegmentMeta


class EntryState(StrEnum):
    READY = "ready"
    TAKEN = "taken"


@dataclass(slots=True, kw_only=True)
class Entry:
    """One buffered segment. `state` is written by `SegmentBuffer` alone."""

    order: int
    """Position of its request in the run; smaller is older."""
    meta: SegmentMeta
    ref: Any
    """Where the segment lies: an object reference, or the segment itself in a test."""
    state: EntryState = field(default=EntryState.READY, init=False)
    since: float = field(default_factory=time.monotonic, init=False)
    """Monotonic time of its `put`."""


class SegmentBuffer:
    """Bounded in bytes and in count: admission asks for `room`, which reserves the largest segment for each request."""

    def __init__(self, max_bytes: int, max_segments: int, max_segment_bytes: int = 1) -> None:
        """`max_segment_bytes`: no segment is larger. Raises ValueError when a bound is not positive."""
        if max_bytes <= 0 or max_segments <= 0:
            raise ValueError(
                f"buffer: bounds must be > 0, got max_bytes={max_bytes}, max_segments={max_segments}; raise them"
            )
        self._max_bytes = max_bytes
        self._max_segments = max_segments
        self._max_segment_bytes = max_segment_bytes
        self._entries: dict[int, Entry] = {}
        self._ready: list[int] = []  # orders, ascending
        self._keys: dict[RequestKey, int] = {}
        self._num_bytes = 0
        self._overdraft = 0
        """Bytes beyond the bound that lost segments may come back with: later requests were admitted beside their true
        sizes, and now they may be of any size again."""

    def put(self, meta: SegmentMeta, ref: Any, *, order: int) -> Entry:
        """Store a finished segment as READY.

        Raises ContractError, without a change, when `order` or the request key is buffered already, or when the
        segment would exceed a bound: admission must look at `is_full` before it asks for more.
        """
        if order in self._entries or meta.key in self._keys:
            raise ContractError(
                f"buffer: {meta.key} with order {order} is buffered already; the pool delivered a rollout twice: drop "
                "late answers of requests that were retried elsewhere"
            )
        num_bytes, num_segments = self._num_bytes + meta.num_bytes, len(self._entries) + 1
        most_bytes = self._max_bytes + self._overdraft
        if self._entries and (num_bytes > most_bytes or num_segments > self._max_segments):
            raise ContractError(
                f"buffer: {meta.key} would make {num_segments} segments of {num_bytes} bytes, the bounds are "
                f"{self._max_segments} and {most_bytes}; the controller admitted requests while the buffer was "
                "full: raise the bounds to hold every request that may be running"
            )
        entry = Entry(order=order, meta=meta, ref=ref)
        self._entries[order] = entry
        self._keys[meta.key] = order
        self._num_bytes = num_bytes
        insort(self._ready, order)
        return entry

    def take(self, count: int, *, oldest_running: int | None = None) -> list[Entry]:
        """Lease the `count` oldest READY entries, oldest first.

        `oldest_running` is the smallest order among requests without an answer; None when there is none. Raises
        ContractError when fewer than `count` entries are READY before it: the planner waits for `num_takable` first.
        """
        if not 0 <= count <= self.num_takable(oldest_running):
            raise ContractError(
                f"buffer: asked for {count} segments, {self.num_takable(oldest_running)} of {len(self._ready)} READY "
                f"ones are older than the running request {oldest_running}; the planner waits for num_takable"
            )
        taken = [self._entries[order] for order in self._ready[:count]]
        del self._ready[:count]
        for entry in taken:
            entry.state = EntryState.TAKEN
        return taken

    def num_takable(self, oldest_running: int | None = None) -> int:
        """READY entries that no running request precedes."""
        return len(self._ready) if oldest_running is None else bisect_left(self._ready, oldest_running)

    def release(self, entries: Iterable[Entry]) -> None:
        """Forget trained entries and free their slots and bytes. Raises ContractError, without a change, when one is
        not TAKEN."""
        for entry in self._owned(entries):
            del self._entries[entry.order], self._keys[entry.meta.key]
            self._num_bytes -= entry.meta.num_bytes

    def lose(self, entries: Iterable[Entry]) -> None:
        """`release` of segments that are gone and will be asked for again."""
        lost = list(entries)
        self.release(lost)
        self._overdraft += sum(self._max_segment_bytes - entry.meta.num_bytes for entry in lost)

    def requeue(self, entries: Iterable[Entry]) -> None:
        """Give leased entries back as READY, at their old place in the order. Raises as `release` does."""
        for entry in self._owned(entries):
            entry.state = EntryState.READY
            insort(self._ready, entry.order)

    def _owned(self, entries: Iterable[Entry]) -> list[Entry]:
        owned = list(entries)
        for entry in owned:
            if self._entries.get(entry.order) is not entry or entry.state is not EntryState.TAKEN:
                raise ContractError(
                    f"buffer: {entry.meta.key} (order {entry.order}) is not leased; release or requeue each entry of a "
                    "take exactly once"
                )
        if len({entry.order for entry in owned}) != len(owned):
            raise ContractError(f"buffer: {len(owned)} entries name one twice; hand over each leased entry once")
        return owned

    @property
    def num_taken(self) -> int:
        return len(self._entries) - len(self._ready)

    @property
    def num_segments(self) -> int:
        """READY and TAKEN."""
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Bytes of READY and TAKEN entries."""
        return self._num_bytes

    @property
    def oldest_s(self) -> float:
        """Age of the segment that was put first, READY or TAKEN; 0 for an empty buffer."""
        return time.monotonic() - next(iter(self._entries.values())).since if self._entries else 0.0

    def room(self, num_running: int) -> int:
        """Requests that may be begun beside `num_running` others, so that `put` fits whatever their sizes turn out.

        Never negative. A bound that holds one window never blocks: windows are taken oldest first, so what fills the
        buffer is the window itself.
        """
        by_bytes = (self._max_bytes - self._num_bytes) // self._max_segment_bytes
        by_count = self._max_segments - len(self._entries)
        if by_bytes >= num_running:
            self._overdraft = 0
        return max(0, min(by_bytes, by_count) - num_running)

    def ready(self) -> list[Entry]:
        """READY entries, oldest first: what a planner may look at without taking it."""
        return [self._entries[order] for order in self._ready]
