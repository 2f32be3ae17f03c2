"""Where the training state lives: on the device while the learner works, in host memory while engines generate.

    on device ──publish ends──► host memory ──train_step, save, export──► on device
                                     ▲──────────── save, export end ──────────┘

Switched on by `rollout_matching.offload.*` (SPEC 4.6, A19). Moving is local to a rank and waits for nobody.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Protocol


class Movable(Protocol):
    """`TrainEngine` in production."""

    def offload(self, parts: Sequence[str]) -> None: ...

    def reload(self) -> None: ...


class Residence:
    """Moves nothing when `parts` is empty. `parts`: `model`, `optimizer`."""

    def __init__(self, engine: Movable, parts: Sequence[str]) -> None:
        self._engine = engine
        self._parts = parts
        self._away = False

    def enter(self) -> None:
        """Everything is on the device from here on."""
        if self._away:
            self._engine.reload()
            self._away = False

    def leave(self) -> None:
        """The device is free for others from here on."""
        if self._parts and not self._away:
            self._engine.offload(self._parts)
            self._away = True

    @contextlib.contextmanager
    def visit(self) -> Iterator[None]:
        """On the device within the block, and where it was before after it, also when the block fails."""
        was_away = self._away
        self.enter()
        try:
            yield
        finally:
            if was_away:
                self.leave()
