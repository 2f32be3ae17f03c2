"""Requests that an engine has not begun, the next of them with their images prepared.

    add ──► ○ ○ ○ ○ ● ● ● ● ──take──► engine          ○ as it came     ● prepared, or being so
                    └─ prepare_next: two admissions, in their order, by a thread of its own

To decode a photograph, cut it into patches and tokenize its prompt takes as long as a step of the engine, which would
stand still meanwhile. It needs no weights, so it may happen before a publish that the request then waits for.

| who waits | for what | who ends the wait |
|---|---|---|
| `take` for an engine that is idle | the images of one admission | the preparing thread |
| `close` | the image that is being prepared | the preparing thread |
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from protocol.contracts import RolloutRequest

To = TypeVar("To")


@dataclass(slots=True)
class _Waiting(Generic[To]):
    request: RolloutRequest
    to: To
    prepared: Future[Any] | None = None
    """None until its turn has come."""


class WaitingRequests(Generic[To]):
    """Owned by the engine's thread; `prepare` runs in another, one call at a time."""

    def __init__(self, admission: int) -> None:
        """`admission`: most requests of one `take`."""
        self._admission = admission
        self._queue: deque[_Waiting[To]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prepare")

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, requests: Iterable[tuple[RolloutRequest, To]]) -> None:
        """Behind those that wait."""
        self._queue.extend(_Waiting(request, to) for request, to in requests)

    def give_back(self, begun: Iterable[tuple[RolloutRequest, To]]) -> None:
        """Requests that the engine was made to forget: behind those that are prepared, before the others. They are
        prepared anew, and an engine begins requests in the order in which they were prepared: vLLM keeps what it knows
        of images twice, on either side of that, and the two must not differ."""
        prepared = sum(waiting.prepared is not None for waiting in self._queue)  # the first ones
        for place, (request, to) in enumerate(begun, start=prepared):
            self._queue.insert(place, _Waiting(request, to))

    def prepare_next(self, prepare: Callable[[RolloutRequest], Any]) -> None:
        """Has two admissions prepared: one to begin with, and one while the engine steps."""
        for waiting in islice(self._queue, 2 * self._admission):
            if waiting.prepared is None:
                waiting.prepared = self._thread.submit(prepare, waiting.request)

    def take(self, idle: bool) -> Iterator[tuple[RolloutRequest, To, Future[Any]]]:
        """The next requests that are prepared, one admission at most; each with what `prepare` returned or raised. For
        an engine that is `idle`, a whole admission, so that it begins with a batch."""
        for waiting in list(islice(self._queue, self._admission)):
            if waiting.prepared is None or not (idle or waiting.prepared.done()):
                return
            self._queue.popleft()
            yield waiting.request, waiting.to, waiting.prepared

    def take_all(self) -> list[tuple[RolloutRequest, To]]:
        """Those that wait, prepared or not."""
        for waiting in self._queue:
            if waiting.prepared is not None:
                waiting.prepared.cancel()
        left = [(waiting.request, waiting.to) for waiting in self._queue]
        self._queue.clear()
        return left

    def close(self) -> None:
        """Ends the thread. Idempotent."""
        self._thread.shutdown(cancel_futures=True)
