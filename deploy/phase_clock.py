"""Where the loop's time goes: seconds per phase, from the phases that it announces itself."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable


class PhaseClock:
    """The loop enters phases; the endpoint's thread may read at any time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._phase = ""
        self._booked = clock()
        self._totals: defaultdict[str, float] = defaultdict(float)
        self._taken: dict[str, float] = {}

    def enter(self, phase: str) -> None:
        """The loop is in `phase` from now on; entering it again changes nothing."""
        with self._lock:
            self._book()
            self._phase = phase

    def totals(self) -> dict[str, float]:
        """Seconds per phase since the start, the running one included."""
        with self._lock:
            self._book()
            return dict(self._totals)

    def take(self) -> dict[str, float]:
        """Seconds per phase since the last `take`; phases without any are absent."""
        totals = self.totals()
        fresh = {name: total - self._taken.get(name, 0.0) for name, total in totals.items()}
        self._taken = totals
        return {name: seconds for name, seconds in fresh.items() if seconds > 0}

    def _book(self) -> None:
        now = self._clock()
        if self._phase:
            self._totals[self._phase] += now - self._booked
        self._booked = now
