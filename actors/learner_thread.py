"""The learner's work in a thread of its own, while the loop's thread takes in what the actors answer.

| who waits | for what | who ends the wait |
|---|---|---|
| `LearnerThread` | the learner's step, merged weights, checkpoint | the learner group, within its `step_timeout_s` |
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
LOOK_S = 0.5
"""Longest wait for an answer while the learner works; its end wakes the loop at once."""

log = logging.getLogger("rollmatch.loop")


class LearnerThread:
    """Called with work, returns its result. One piece of work at a time."""

    def __init__(self, take_in: Callable[[float], object], wake: Callable[[], None]) -> None:
        """`take_in` waits so many seconds for answers; `wake` ends its wait, from any thread."""
        self._take_in = take_in
        self._wake = wake
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="learner")
        self.failure: Exception | None = None
        """What taking in ended with. Nothing is taken in any more, and the window at hand is finished without it."""

    def __call__(self, work: Callable[[], T]) -> T:
        """Raises what the work raises. A second signal leaves at once."""
        future = self._executor.submit(work)
        future.add_done_callback(lambda _: self._wake())
        while not future.done() and self.failure is None:
            self.take_in(LOOK_S)
        return future.result()

    def take_in(self, timeout_s: float = 1.0) -> None:
        """What the actors answer, within a window: an exception waits in `failure` until that is whole."""
        try:
            self._take_in(timeout_s)
        except Exception as failure:
            log.error("the run ends when its window is whole: %s", failure)
            self.failure = failure

    def check(self) -> None:
        """Raises what taking in ended with, if it did."""
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """Does not wait for work that hangs: its process ends with the run."""
        self._executor.shutdown(wait=False, cancel_futures=True)
