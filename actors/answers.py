"""Answers of one actor, from its engine's thread to the call that collects them in groups.

                    put (engine's thread)              take (collecting call)
    expect ──► open ──────────────────────► answered ─────────────────────────► in a group
    (submit)

The driver pays for being woken up, hardly for what is in a group, and trains windows in the order of their requests. So
a training answer whose elders still run is of no use to it yet, and waits for them here:

| who waits | for what | who ends the wait |
|---|---|---|
| a group without an answer | the first | the engine's thread, which answers every request, also when it fails |
| a group with the oldest one or an evaluation | others, `GROUP_S` at most | they; nothing more is open; it is full |
| a group without it | that one, `HOLD_S` at most | the same |

Where the driver has more requests than the actors take, a held answer would keep a place of the engine empty: then
every group closes after `GROUP_S`. Age is that within this actor: a request that comes from a dead one counts as young,
and its answer may be `HOLD_S` late.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from actors.engine_loop import Answer
from protocol.contracts import EVALUATION_EPOCH, RequestKey
from protocol.errors import EngineError, RecordError
from protocol.unread import AnyRequest

GROUP_S = 0.1
"""How long an answer that the driver can use waits for others; small beside the seconds that a rollout takes."""
HOLD_S = 5.0
"""How long one waits for an older request. What an actor holds is lost with it, and rolled out again."""
GROUP_SIZE = 32
"""Most answers of a group: the object that holds its segments is freed when the last of them is."""


class Answered(NamedTuple):
    """A request that is over."""

    request: AnyRequest
    answer: Answer | RecordError
    at: float
    """Monotonic seconds."""


class Answers:
    """Thread-safe: one thread expects, one or more put, one takes."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Answered] = queue.SimpleQueue()
        self._open: dict[RequestKey, float] = {}  # when it was expected; oldest first
        self._lock = threading.Lock()

    def expect(self, requests: Sequence[AnyRequest]) -> None:
        """Requests that will be answered, younger than those before."""
        with self._lock:
            self._open |= dict.fromkeys((request.key for request in requests), time.monotonic())

    def put(self, request: AnyRequest, answer: Answer | RecordError) -> None:
        """The answer of an expected request."""
        self._queue.put(Answered(request, answer, time.monotonic()))

    def take_group(self, hold: bool) -> Iterator[tuple[Answered, float]]:
        """The next answers, at least one, in order of completion; each with the seconds that it took. They are yielded
        as they come, so that the caller works on them while it waits for others.

        `hold`: whether answers wait for older requests. Raises the EngineError of an engine that failed; what ended
        before its failure is the group before.
        """
        until, size = float("inf"), 0
        while size < GROUP_SIZE and (not size or self._open):
            try:
                answered = self._queue.get(timeout=None if not size else max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            if isinstance(answered.answer, EngineError):
                if not size:
                    raise answered.answer
                self._queue.put(answered)  # for the next group
                return
            asked, is_usable = self._close(answered.request.key)
            size += 1
            until = min(until, time.monotonic() + (GROUP_S if is_usable or not hold else HOLD_S))
            yield answered, answered.at - asked

    def _close(self, key: RequestKey) -> tuple[float, bool]:
        """When the request was expected, and whether its answer is of use before those to older ones."""
        with self._lock:
            is_usable = key.epoch == EVALUATION_EPOCH or next(iter(self._open)) == key
            return self._open.pop(key), is_usable
