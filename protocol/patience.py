"""Files on a server that fails over: what the system says of one may pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
TRIES = 3
PAUSE_S = 1.0
"""Between two tries."""


def patiently(
    read: Callable[[], T], pause: Callable[[float], None] = time.sleep, *, missing_may_pass: bool = False
) -> T:
    """What `read` returns. What the system says of a file (ESTALE, EIO, EMFILE) may pass, and is tried again; `pause`
    waits. `missing_may_pass`: also that there is none, where another machine has read it."""
    for tries_left in reversed(range(TRIES)):
        try:
            return read()
        except OSError as error:
            is_final = error.errno is None or (isinstance(error, FileNotFoundError) and not missing_may_pass)
            if not tries_left or is_final:  # Pillow's own errors carry no number
                raise
        pause(PAUSE_S)
    raise AssertionError("the last try returns or raises")
