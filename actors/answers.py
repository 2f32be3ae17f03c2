"""Answers of one actor, from its engine's thread to the call that collects them in groups.

                    put (engine's thread)              take (collecting call)
    expect ──► open ──────────────────────► answered ─────────────────────────► in a group
    (submit)

The driver pays for being woken up, hardly for what is in a group, and trains windows of requests that it handed over
together, a batch to each actor. So an answer is of no use to it before the others of its batch, and waits here:

| who waits | for what | who ends the wait |
|---|---|---|
| a group without an answer | the first | the engine's thread, which answers every request, also when it fails |
| a group with an answer | the last of some batch, `HOLD_S` at most | the same; it is full |
| a group, where the driver has more requests than the actors take | others, `GROUP_S` at most | they; it is full |

In the last case a held answer would keep a place of the engine empty.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from actors.engine_loop import Answer
from protocol.contracts import RequestKey
from protocol.errors import EngineError, RecordError
from protocol.unread import AnyRequest

GROUP_S = 0.1
"""How long an answer waits for others where its place is wanted; small beside the seconds that a rollout takes."""
HOLD_S = 5.0
"""How long one waits for the rest of its batch. What an actor holds is lost with it, and rolled out again."""
GROUP_SIZE = 128
"""Most answers of a group: the object that holds its segments is freed when the last of them is, and a node that needs
one of them fetches all."""


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
        self._open: dict[RequestKey, tuple[float, int]] = {}  # when it was expected, and the number of its batch
        self._left: Counter[int] = Counter()  # open requests of each batch
        self._num_batches = 0
        self._lock = threading.Lock()

    def expect(self, batch: Sequence[AnyRequest]) -> None:
        """Requests that will be answered, and that the driver needs together."""
        with self._lock:
            self._num_batches += 1
            self._open |= dict.fromkeys((request.key for request in batch), (time.monotonic(), self._num_batches))
            self._left[self._num_batches] = len(batch)

    def put(self, request: AnyRequest, answer: Answer | RecordError) -> None:
        """The answer of an expected request."""
        self._queue.put(Answered(request, answer, time.monotonic()))

    def take_group(self, hold: bool) -> Iterator[tuple[Answered, float]]:
        """The next answers, at least one, in order of completion; each with the seconds that it took. They are yielded
        as they come, so that the caller works on them while it waits for others.

        `hold`: whether answers wait for the rest of their batch. Raises the EngineError of an engine that failed; what
        ended before its failure is the group before.
        """
        until, size, complete = float("inf"), 0, False
        while size < GROUP_SIZE and not (complete and hold) and (not size or self._open):
            try:
                answered = self._queue.get(timeout=None if not size else max(0.0, until - time.monotonic()))
            except queue.Empty:
                return
            if isinstance(answered.answer, EngineError):
                if not size:
                    raise answered.answer
                self._queue.put(answered)  # for the next group
                return
            asked, complete = self._close(answered.request.key)
            if not size:
                until = time.monotonic() + (HOLD_S if hold else GROUP_S)
            size += 1
            yield answered, answered.at - asked

    def _close(self, key: RequestKey) -> tuple[float, bool]:
        """When the request was expected, and whether it was the last of its batch."""
        with self._lock:
            asked, batch = self._open.pop(key)
            self._left[batch] -= 1
            if complete := not self._left[batch]:
                del self._left[batch]
            return asked, complete
