"""`rollmatch watch RUN`: a run's health in the terminal, from its files. It needs no connection to the run.

| who waits | for what | who ends the wait |
|---|---|---|
| the view | new lines in the run's folder | `summary.json` or an `end` event; Ctrl-C |

The view reads and never writes, so it may come, go and be there twice.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.health_numbers import Level
from deploy.health_rules import findings, verdict
from deploy.progress import Mark, time_left
from deploy.run_events import AGAIN
from deploy.run_files import RunData, RunReader
from deploy.timeline import Span, merge_spans

_BARS = "▁▂▃▄▅▆▇█"
_SPARK_WIDTH = 40
_STYLES = {Level.BAD: "bold red", Level.WATCH: "yellow", Level.GOOD: "green"}
_QUIET_S = 120.0
"""Without a new line for so long, the view says that the run may be gone."""

CURVES = (
    ("eval_rollout_f1", "F1, evaluation", "{:.3f}"),
    ("eval_rollout_desc_exact_acc_on_matched", "exact descriptions", "{:.3f}"),
    ("rollout/f1", "F1, rollouts", "{:.3f}"),
    ("rollout/precision", "precision", "{:.3f}"),
    ("rollout/recall", "recall", "{:.3f}"),
    ("loss/total", "loss", "{:.3f}"),
    ("loss/ce", "cross-entropy", "{:.3f}"),
    ("loss/coord", "coordinates", "{:.3f}"),
    ("rollout/rollouts_per_s", "rollouts/s", "{:.2f}"),
    ("rollout/gen_tokens_per_s", "generated tokens/s", "{:.0f}"),
    ("train/tokens_per_s", "trained tokens/s", "{:.0f}"),
    ("packing/post_rollout_fill", "pack fill", "{:.2f}"),
    ("rollout/parse_truncated_rate", "truncated", "{:.3f}"),
    ("rollout/duplicate_rate", "duplicates", "{:.3f}"),
    ("policy/staleness_max", "staleness", "{:.0f}"),
    ("buffer/segments", "buffered segments", "{:.0f}"),
    ("buffer/bytes", "buffered bytes", "{:.0f}"),
)

SCORES = ("F1, evaluation", "exact descriptions", "F1, rollouts", "precision", "recall")
"""Curves whose largest value is their best."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--once", action="store_true", help="print one frame and leave")
    parser.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between two frames (default 2)")


def run(arguments: argparse.Namespace) -> int:
    """Shows frames until the run has ended."""
    console, view = Console(), View()
    reader = RunReader(arguments.run_dir)
    data = reader.read()
    if arguments.once:
        console.print(view.frame(data, time.time()))
        return 0
    with Live(view.frame(data, time.time()), console=console, auto_refresh=False) as live:
        while not has_ended(data):
            time.sleep(arguments.every)
            data = reader.read()
            live.update(view.frame(data, time.time()), refresh=True)
    return 0


def has_ended(data: RunData) -> bool:
    """The run wrote its summary, or what ended it."""
    return data.summary is not None or data.error is not None


class View:
    """Frame after frame. Findings and curves are made of all steps so far, and only when there is another one."""

    def __init__(self) -> None:
        self._state: object = None
        self._drawn: list[RenderableType] = []

    def frame(self, data: RunData, now: float) -> RenderableType:
        """Everything at one moment, what matters most first: a low terminal cuts the end off. `now` in Unix seconds."""
        state = (len(data.steps), len(data.evaluations), data.events[-1:], data.summary is None)
        if state != self._state:
            self._state, self._drawn = state, [_findings(data), _curves(data)]
        parts = [_head(data, now), *self._drawn]
        if actors := _lanes(data):
            parts.append(actors)
        return Group(*parts)


def sparkline(values: Sequence[float], width: int = _SPARK_WIDTH) -> str:
    """The newest `width` values as bars from their smallest to their largest; values that are not finite are gaps.

    `sparkline([1, 2, 3])` → `▁▅█`.
    """
    shown = list(values)[-width:]
    finite = [value for value in shown if abs(value) < float("inf")]
    if not finite:
        return " " * len(shown)
    low, high = min(finite), max(finite)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((v - low) * scale)] if abs(v) < float("inf") else " " for v in shown)


def _head(data: RunData, now: float) -> RenderableType:
    step = data.steps[-1]["step"] if data.steps else 0.0
    total = data.setting("training.max_steps", -1)
    line = Table.grid(padding=(0, 2, 0, 0))
    bar = ProgressBar(total=max(total, 1), completed=step, width=28) if total > 0 else Text()
    of = f"/{total}" if total > 0 else ""
    line.add_row(Text(f"step {step:.0f}{of}", "bold"), bar, _state(data, now))
    if not has_ended(data) and (left := _time_left(data, total, now)):
        line.add_row("", left, "")
    return Panel(line, title=data.name, title_align="left")


def _time_left(data: RunData, total: float, now: float) -> str:
    """At the pace of the steps since the last start: time between a crash and its resume is none of a step."""
    again = [event for event in data.events if event["kind"] in AGAIN]
    step, since = (again[-1]["step"], again[-1]["time"]) if again else (0, 0.0)
    if data.began is None or not data.steps or data.steps[-1]["time"] < since:
        return ""
    done = Mark(data.steps[-1]["step"], data.steps[-1]["time"])
    return time_left(Mark(step, data.began), done, total, now)


def _state(data: RunData, now: float) -> Text:
    if data.summary is not None:
        return Text(f"finished after {data.summary['wall_s']:.0f} s", "green")
    if data.error is not None:
        return Text(f"ended: {data.error}", "bold red")
    silent = now - data.last_event if data.last_event is not None else 0.0
    words = f"no phase yet, {silent:.0f} s since the last event"
    if last := data.phase:
        words = f"{last['name']} for {now - last['since']:.0f} s, waiting for {last['waiting_for']}"
    return Text(words + (": is it still alive?" if silent > _QUIET_S else ""), "yellow" if silent > _QUIET_S else "")


def _curves(data: RunData) -> RenderableType:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "now", "best", "newest to the right"):
        table.add_column(column, justify="right" if column in ("now", "best") else "left", header_style="dim")
    for name, label, form in CURVES:
        _, values = data.series(name)
        if values:
            best = form.format(max(values)) if label in SCORES else ""
            table.add_row(label, Text(form.format(values[-1]), "bold"), best, Text(sparkline(values), "cyan"))
    return table


def _lanes(data: RunData) -> RenderableType | None:
    """Actors and ranks: busy share of the newest minute that the files know of."""
    spans = [each for each in data.spans if each.lane != "driver"]
    if not spans:
        return None
    end = max(each.span.end for each in spans)
    start = max(min(each.span.start for each in spans), end - 60.0)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("", "busy", "last did"):
        table.add_column(column, header_style="dim")
    for lane in sorted({each.lane for each in spans}):
        own = [each for each in spans if each.lane == lane and each.span.end > start]
        clipped = (Span(max(each.span.start, start), each.span.end) for each in own)
        busy = sum(span.end - span.start for span in merge_spans(clipped, gap_s=0.0))
        share = busy / (end - start) if end > start else 0.0
        last = max(own, key=lambda each: each.span.end).name if own else "nothing in this time"
        table.add_row(lane, f"{100 * share:3.0f} %", last)
    ready = data.steps[-1].get("rollout/actors_ready") if data.steps else None
    wanted = data.setting("rollout.num_actors", 0)
    title = "" if ready is None else f"{ready:.0f} of {wanted} actors take requests, policy version {_version(data)}"
    return Group(Text(title, "dim"), table) if title else table


def _version(data: RunData) -> str:
    _, versions = data.series("policy/version")
    return f"{versions[-1]:.0f}" if versions else "?"


def _findings(data: RunData) -> RenderableType:
    found = findings(data.steps, data.evaluations, data.setting, data.events, finished=data.summary is not None)
    level, words = verdict(found)
    text = Text()
    for finding in found:
        text.append(f"{finding.title}. ", _STYLES[finding.level])
        text.append(f"{finding.text}\n")
    text.rstrip()
    return Panel(text, title=Text(words, _STYLES[level]), title_align="left", border_style=_STYLES[level])
