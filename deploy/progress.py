"""What a person sees while a run lives: two lines that stay in place, or log lines where there is no terminal.

    step 12/60 ━━━━━━━━╸━━━━━━━━━━━━━━━━  0:02:31, about 0:10:04 left  F1 0.612 (evaluation 0.587)  loss 2.314
    rollout 0:00:07, waiting for 12 of 32 segments  ·  3.2 rollouts/s  410 tokens/s  fill 0.93

Everything goes to stderr: stdout belongs to the final table and its JSON line.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.signals import say

log = logging.getLogger("rollmatch")

SECONDS_BETWEEN_WAIT_LINES = 30.0
"""A wait that lasts is logged again this often where there is no terminal."""
PATIENCE_S = 3.0
"""A row of equal things to do is shown from here on."""
WIDE = 120
"""Columns from which on the bar is long; with fewer it makes room for the time left."""
FEWEST_STEPS = 2
"""Steps to estimate the others' time from."""
SPEED = {
    "rollout/rollouts_per_s": "{:.1f} rollouts/s",
    "rollout/gen_tokens_per_s": "{:.0f} tokens/s",
    "packing/post_rollout_fill": "fill {:.2f}",
}
"""Of the last window, as everywhere else."""

Item = TypeVar("Item")


class Mark(NamedTuple):
    """A number of steps done, and when they were."""

    step: float
    time: float


class TrainProgress:
    """Context manager around the loop; `phase` may be called as often as the loop polls."""

    def __init__(
        self,
        total_steps: int,
        *,
        unit: str = "step",
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`unit`: what the bar counts."""
        self._unit = unit
        self._total_steps = total_steps
        self._console = console or Console(file=sys.stderr)
        self._clock = clock
        self._live: Live | None = None
        self._latest: dict[str, float] = {}
        self._phase, self._waiting_for = "start", ""
        self._notice = ""
        self._began = self._phase_began = clock()
        self._first: Mark | None = None
        self._last: Mark | None = None
        self._logged_at = float("-inf")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def phase(self, name: str, waiting_for: str = "") -> None:
        """The loop is in `name` now (`rollout`, `train`, `sync`, ...) and goes on when `waiting_for` is there."""
        now = self._clock()
        if name == "rollout" and self._first is None:
            self._first = Mark(self._step, now)  # a start takes minutes, and comes once
        news = name != self._phase or _kind(waiting_for) != _kind(self._waiting_for)
        if name != self._phase:
            self._phase_began = now
        self._phase, self._waiting_for = name, waiting_for
        if self._live is None and (news or now - self._logged_at >= SECONDS_BETWEEN_WAIT_LINES):
            self._logged_at = now
            log.info("%s", self._phase_text())

    def step(self, metrics: Mapping[str, float]) -> None:
        """Numbers of one optimizer step or evaluation, by their table names, and `step`: steps done so far."""
        self._latest.update(metrics)
        if "loss/total" in metrics:
            self._last = Mark(self._step, self._clock())
        if self._live is None and metrics.keys() & {"rollout/f1", "eval_rollout_f1"}:
            parts = [*self._quality(), *self._speed(), *filter(None, [self._time_left()])]
            log.info("%s %d/%d  %s", self._unit, self._step, self._total_steps, "  ".join(parts))

    def rewind(self, step: int) -> None:
        """The run goes on from here: what is known of its pace holds for other steps."""
        self._latest["step"] = step
        self._first = self._last = None

    def notice(self, text: str) -> None:
        """What stays to be seen until the end. A signal handler may call it: it takes no lock. The next redraw shows
        it, and would wipe out a line that is written now."""
        self._notice = text
        if self._live is None:
            say(text)

    @property
    def _step(self) -> int:
        return int(self._latest.get("step", 0))

    def _time_left(self) -> str:
        return time_left(self._first, self._last, self._total_steps, self._clock())

    def _quality(self) -> list[str]:
        latest, parts = self._latest, []
        evaluated = f"evaluation {latest['eval_rollout_f1']:.3f}" if "eval_rollout_f1" in latest else ""
        if "rollout/f1" in latest:
            parts.append(f"F1 {latest['rollout/f1']:.3f}" + (f" ({evaluated})" if evaluated else ""))
        elif evaluated:
            parts.append(f"F1 {evaluated}")
        if "loss/total" in latest:
            parts.append(f"loss {latest['loss/total']:.3f}")
        return [*parts, f"policy {latest['policy/version']:.0f}"] if "policy/version" in latest else parts

    def _speed(self) -> list[str]:
        return [form.format(self._latest[name]) for name, form in SPEED.items() if name in self._latest]

    def _phase_text(self) -> str:
        spent = self._clock() - self._phase_began
        return self._phase + (f" {hms(spent)}" if spent >= 1 else "") + _waiting(self._waiting_for)

    def _render(self) -> RenderableType:
        top = Table.grid(padding=(0, 2, 0, 0))
        wide = self._console.width >= WIDE
        bar = ProgressBar(total=self._total_steps, completed=self._step, width=24 if wide else 10)
        left = self._time_left() if wide else self._time_left().removeprefix("about ")
        times = ", ".join(filter(None, [hms(self._clock() - self._began), left]))
        quality = Text("  ".join(self._quality()), no_wrap=True, overflow="ellipsis")
        bars = [bar] if wide or not left else []
        top.add_row(f"{self._unit} {self._step}/{self._total_steps}", *bars, times, quality)
        speed = "  ".join(self._speed())
        second = self._phase_text() + (f"  ·  {speed}" if speed else "")
        lines: list[RenderableType] = [top, Text(second, style="dim", no_wrap=True, overflow="ellipsis")]
        if self._notice:
            lines.append(Text(self._notice, style="yellow"))
        return Group(*lines)


def counted(
    items: Sequence[Item],
    what: str,
    *,
    console: Console | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Item]:
    """The items; where they take longer than PATIENCE_S, a terminal shows how many were taken until all are."""
    console = console or Console(file=sys.stderr)
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bar, began, is_shown = Progress(*columns, console=console, transient=True), clock(), False
    task = bar.add_task(what, total=len(items))
    with ExitStack() as stack:
        for item in items:
            if not is_shown and console.is_terminal and clock() - began >= PATIENCE_S:
                stack.enter_context(bar)
                is_shown = True
            yield item
            bar.advance(task)


def time_left(first: Mark | None, last: Mark | None, total: float, now: float) -> str:
    """`about 0:12:30 left`, at the pace of the steps between two marks; empty where they are too few, or time is up."""
    if first is None or last is None or last.step - first.step < FEWEST_STEPS:
        return ""
    pace = (last.time - first.time) / (last.step - first.step)
    left = pace * (total - last.step) - (now - last.time)
    return f"about {hms(left)} left" if left >= 1 else ""


def _waiting(what: str) -> str:
    return f", waiting for {what}" if what else ""


def _kind(waiting_for: str) -> str:
    """What is waited for, whatever its number."""
    return re.sub(r"\d+", "", waiting_for)


def hms(seconds: float) -> str:
    """`151.0` → `0:02:31`."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
