"""SIGINT and SIGTERM: the first one finishes the window, saves and leaves; the second one leaves at once."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from actors.controller import Controller


class StopSignals:
    """Catches both signals while it is open. Without a loop that could save, the first one leaves at once too.

    Open it after Ray: `ray.init` sets its own handler of SIGTERM.
    """

    def __init__(self) -> None:
        self._controller: Controller | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def stop(self, controller: Controller) -> Iterator[None]:
        """The loop that the first signal asks to stop."""
        self._controller = controller
        try:
            yield
        finally:
            self._controller = None

    def _ask(self, signum: int, _frame: object) -> None:
        if self._controller is None or self._controller.stop:
            raise KeyboardInterrupt
        self._controller.stop = True
