"""Healthy means that something moved lately; being alive is not enough. The endpoint asks, the loop tells."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple


class Answer(NamedTuple):
    """What `/healthz` and `/readyz` say."""

    ok: bool
    sentence: str


class _Now(NamedTuple):
    """Replaced as a whole, so a reader in another thread sees one moment."""

    phase: str
    waiting_for: str
    moved: float


class Health:
    """Told by the driver's thread, asked by the endpoint's."""

    def __init__(self, within_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._within_s = within_s
        self._clock = clock
        self._now = _Now("start", "", clock())
        self._ready = False

    def phase(self, name: str, waiting_for: str) -> bool:
        """Where the loop is. A new phase, and a wait that got shorter, is progress; returns whether it was."""
        moved = (name, waiting_for) != (self._now.phase, self._now.waiting_for)
        self._now = _Now(name, waiting_for, self._clock() if moved else self._now.moved)
        return moved

    def progress(self) -> None:
        """Something moved: an answer, a step, a version, a checkpoint."""
        self._now = self._now._replace(moved=self._clock())

    def ready(self, is_ready: bool = True) -> None:
        """Whether every engine has attested a version; a run that starts again has none."""
        self._ready = is_ready

    @property
    def since_progress_s(self) -> float:
        return self._clock() - self._now.moved

    def healthz(self) -> Answer:
        """Not healthy after `within_s` seconds without progress."""
        silent = self.since_progress_s
        if silent <= self._within_s:
            return Answer(True, f"last progress {silent:.0f} s ago; {self._where()}")
        return Answer(
            False,
            f"no progress for {silent:.0f} s (metrics.healthy_within_s is {self._within_s:.0f}); {self._where()}; "
            "look at docs/runbook.md#no-progress",
        )

    def readyz(self) -> Answer:
        """Ready once the loop runs on attested engines."""
        if self._ready:
            return Answer(True, f"ready; {self._where()}")
        return Answer(False, f"not ready: the first version is not served yet; {self._where()}")

    def _where(self) -> str:
        now = self._now
        return now.phase + (f", waiting for {now.waiting_for}" if now.waiting_for else "")
