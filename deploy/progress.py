"""What a person sees while a run lives: two lines that stay in place, or log lines where there is no terminal.

    step 12/60 ━━━━━━━━╸━━━━━━━━━━━━━━━━  0:02:31  policy 6  F1 0.612 (evaluation 0.587)  loss 2.314
    rollout 0:00:07, waiting for 12 of 32 segments  ·  3.2 rollouts/s  410 tokens/s  fill 0.93

Everything goes to stderr: stdout belongs to the final table and its JSON line.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

log = logging.getLogger("rollmatch")

SECONDS_BETWEEN_WAIT_LINES = 30.0
"""A wait that lasts is logged again this often where there is no terminal."""


class TrainProgress:
    """Context manager around the loop; `phase` may be called as often as the loop polls."""

    def __init__(
        self, total_steps: int, *, console: Console | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total_steps = total_steps
        self._console = console or Console(file=sys.stderr)
        self._clock = clock
        self._live: Live | None = None
        self._latest: dict[str, float] = {}
        self._phase, self._waiting_for = "start", ""
        self._began = self._phase_began = clock()
        self._logged_at = float("-inf")
        self._rollouts = 0.0
        self._rollouts_began: float | None = None

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
        changed = name != self._phase
        now = self._clock()
        if changed:
            self._phase_began = now
        if self._rollouts_began is None and name == "rollout":
            self._rollouts_began = now  # engines that start for minutes are no slow rollouts
        self._phase, self._waiting_for = name, waiting_for
        if self._live is None and (changed or now - self._logged_at >= SECONDS_BETWEEN_WAIT_LINES):
            self._logged_at = now
            log.info("%s", self._phase_text())

    def step(self, metrics: Mapping[str, float]) -> None:
        """Numbers of one optimizer step or evaluation, by their table names, and `step`: steps done so far."""
        if "rollout/segments" in metrics and not metrics.get("rollout/buffer_reuse", 0.0):
            self._rollouts += metrics["rollout/segments"]
        self._latest.update(metrics)
        if self._live is None:
            log.info("step %d/%d  %s", self._step, self._total_steps, "  ".join([*self._quality(), *self._speed()]))

    @property
    def _step(self) -> int:
        return int(self._latest.get("step", 0))

    def _quality(self) -> list[str]:
        latest, parts = self._latest, []
        if "policy/version" in latest:
            parts.append(f"policy {latest['policy/version']:.0f}")
        evaluated = f"evaluation {latest['eval_rollout_f1']:.3f}" if "eval_rollout_f1" in latest else ""
        if "rollout/f1" in latest:
            parts.append(f"F1 {latest['rollout/f1']:.3f}" + (f" ({evaluated})" if evaluated else ""))
        elif evaluated:
            parts.append(f"F1 {evaluated}")
        loss = latest.get("loss/total", latest.get("loss/ce"))
        return parts if loss is None else [*parts, f"loss {loss:.3f}"]

    def _speed(self) -> list[str]:
        seconds = 0.0 if self._rollouts_began is None else self._clock() - self._rollouts_began
        parts = [f"{self._rollouts / seconds:.1f} rollouts/s"] if self._rollouts and seconds > 0 else []
        if "rollout/gen_tokens_per_s" in self._latest:
            parts.append(f"{self._latest['rollout/gen_tokens_per_s']:.0f} tokens/s")
        if "packing/post_rollout_fill" in self._latest:
            parts.append(f"fill {self._latest['packing/post_rollout_fill']:.2f}")
        return parts

    def _phase_text(self) -> str:
        waiting = f", waiting for {self._waiting_for}" if self._waiting_for else ""
        return f"{self._phase} {_hms(self._clock() - self._phase_began)}{waiting}"

    def _render(self) -> RenderableType:
        top = Table.grid(padding=(0, 2, 0, 0))
        bar = ProgressBar(total=self._total_steps, completed=self._step, width=24)
        elapsed = _hms(self._clock() - self._began)
        top.add_row(f"step {self._step}/{self._total_steps}", bar, elapsed, Text("  ".join(self._quality())))
        speed = "  ".join(self._speed())
        second = self._phase_text() + (f"  ·  {speed}" if speed else "")
        return Group(top, Text(second, style="dim", no_wrap=True, overflow="ellipsis"))


def _hms(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
