"""`training.logging_steps`: several optimizer steps in one metric record."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from protocol.event_metrics import GENERATED, repeats
from protocol.metric_names import BY_NAME

Write = Callable[[int, Mapping[str, float]], None]


class StepLog:
    """Gathers steps and writes a record every `every` of them: counters added up, gauges as the last step had them.

    What a window's rollouts count is in one record only, that of its first step; with a record for every step, M-steps
    say again what they train (SPEC 15). The seconds of generation add up like the tokens that they took.
    """

    def __init__(self, write: Write, *, every: int, first: bool, last_step: int) -> None:
        """`first` writes step 1 alone; `last_step` ends the run and is written in any case."""
        self._write = write
        self._every = every
        self._first = first
        self._last_step = last_step
        self._step = 0
        self._gathered: dict[str, float] = {}

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of one optimizer step, counted from 1."""
        for name, value in metrics.items():
            before = self._gathered.get(name, 0.0)
            if BY_NAME[name].kind != "counter" and name != GENERATED:
                self._gathered[name] = value
            elif self._every == 1 or not repeats(name, metrics):
                self._gathered[name] = before + value
        self._step = step
        if step % self._every == 0 or step == self._last_step or (step == 1 and self._first):
            self.flush()

    def flush(self) -> None:
        """Writes what was gathered, if anything was."""
        if self._gathered:
            self._write(self._step, self._gathered)
        self.forget()

    def forget(self) -> None:
        """The run goes back: what was gathered is trained again."""
        self._gathered = {}
