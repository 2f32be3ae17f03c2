"""A thread of the driver that writes what people look at, so that the loop never waits for a disk.

| who waits | for what | who ends the wait |
|---|---|---|
| the thread | the next job | `submit`; `close` |
| `close` | what is queued | the thread; or `timeout_s`, after which the rest is dropped and counted |

`submit` never waits: where the queue is full the job is dropped, counted and logged. A job that fails is logged with
its traceback and counted; the next one runs.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable

log = logging.getLogger("rollmatch")


class BackgroundWriter:
    """Runs jobs one after another, at most `max_jobs` waiting. Used from one thread."""

    def __init__(self, max_jobs: int = 32) -> None:
        self._jobs: queue.Queue[tuple[str, Callable[[], None]] | None] = queue.Queue(max_jobs)
        self._thread = threading.Thread(target=self._work, name="rollmatch-writer", daemon=True)
        self._closing = threading.Event()
        self.num_dropped = 0
        self.num_failed = 0
        self._told = (0, 0)
        self._thread.start()

    def submit(self, what: str, job: Callable[[], None]) -> bool:
        """Queues a job; False where there was no room. `what` names it in the log."""
        try:
            self._jobs.put_nowait((what, job))
        except queue.Full:
            self.num_dropped += 1
            log.warning(
                "dropped %s: %d jobs wait for the writer; write less often, or to a faster disk",
                what,
                self._jobs.maxsize,
            )
            return False
        return True

    def take_counters(self) -> dict[str, float]:
        """`dump/dropped` and `dump/failed` since the last call."""
        now = (self.num_dropped, self.num_failed)
        before, self._told = self._told, now
        return {"dump/dropped": float(now[0] - before[0]), "dump/failed": float(now[1] - before[1])}

    def close(self, timeout_s: float = 30.0) -> None:
        """Lets the thread finish what is queued; idempotent."""
        if self._closing.is_set():
            return
        deadline = time.monotonic() + timeout_s
        with contextlib.suppress(queue.Full):  # a thread that is stuck is counted below
            self._jobs.put(None, timeout=timeout_s)
        self._thread.join(max(0.0, deadline - time.monotonic()))
        self._closing.set()
        if self._thread.is_alive():
            left = self._jobs.qsize()
            self.num_dropped += left
            log.warning("the writer was not done after %.0f s: %d jobs are dropped", timeout_s, left)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None and not self._closing.is_set():
            what, run = job
            try:
                run()
            except Exception:  # the boundary between what people look at and the training that must go on
                self.num_failed += 1
                log.exception("could not write %s", what)
