"""SIGINT and SIGTERM: the first one finishes the window, saves and leaves, and says so; the second leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:  # the progress line says things from here, also where no loop runs
    from actors.controller import Controller

STOPPING = "finishing this window, then saving a checkpoint; once more leaves at once, without one"
LEFT = "left at once, without a checkpoint"
_STDERR = 2


def say(text: str) -> None:
    """A line on stderr from within a signal handler: a log or a print may be what the signal came in the middle of."""
    with contextlib.suppress(OSError):  # nobody reads any more, which must not keep the checkpoint from being written
        os.write(_STDERR, f"rollmatch: {text}\n".encode())


class StopSignals:
    """Catches both signals while it is open. Without a loop that could save, the first one leaves at once too.

    Open it after Ray: `ray.init` sets its own handler of SIGTERM.
    """

    def __init__(self, notice: Callable[[str], None] = say) -> None:
        """`notice` shows a text from within a signal handler."""
        self._notice = notice
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
        if self._controller is None:
            raise KeyboardInterrupt
        if self._controller.stop:
            raise KeyboardInterrupt(LEFT)
        self._controller.stop = True
        self._notice(STOPPING)
