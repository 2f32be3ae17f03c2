"""Who was busy and who waited: a bar per span, a lane per part of the service, and each lane's busy share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from deploy.report.figures import PHASE_COLOURS, Figure, layout
from deploy.run_events import LaneSpan
from deploy.run_files import RunData
from deploy.timeline import Span, merge_spans

ASIDE = ("evaluate", "save")
"""Phases of the loop in which nothing is trained."""
WORDS = {"rollout": "wait for rollouts"}
MOST_SPANS = 4000
"""Bars drawn, the newest: a browser draws these at once."""
_FIRST_VIEW_PHASES = 24
"""Driver phases that the figure opens with; all are there when zoomed out."""


class LaneShare(NamedTuple):
    """How busy a lane was while the loop trained."""

    lane: str
    busy: float
    """Share of the time, 0..1."""
    text: str


def timeline_figure(run: RunData) -> Figure | None:
    """The newest spans of a run; None without any."""
    spans = _worth_drawing(run.spans)[-MOST_SPANS:]
    if not spans:
        return None
    origin = spans[0].span.start
    lanes = _lanes(spans)
    data: list[dict[str, Any]] = []
    for name, colour in PHASE_COLOURS.items():
        chosen = [each for each in spans if each.name == name]
        if chosen:
            data.append(
                {
                    "type": "bar",
                    "orientation": "h",
                    "name": WORDS.get(name, name),
                    "y": [each.lane for each in chosen],
                    "base": [round(each.span.start - origin, 3) for each in chosen],
                    "x": [round(each.span.end - each.span.start, 3) for each in chosen],
                    "width": [0.42 if each.name == "parse" else 0.72 for each in chosen],
                    "marker": {"color": colour},
                    "hovertemplate": "%{y}: " + WORDS.get(name, name) + " for %{x:.2f} s<extra></extra>",
                }
            )
    shape = layout(
        barmode="overlay",
        hovermode="closest",
        height=110 + 46 * len(lanes),
        margin={"l": 90},
        xaxis={"title": {"text": "seconds"}, "range": [0, _first_view(spans, origin)]},
        yaxis={"categoryorder": "array", "categoryarray": lanes[::-1], "automargin": True},
    )
    return {"data": data, "layout": shape}


def lane_shares(run: RunData) -> list[LaneShare]:
    """Busy shares of actors and ranks, of the time in which the loop trains: without evaluating and saving, and without
    the time between a crash and the resume.

    The driver's lane is its phases, which are never idle.
    """
    spans = _worth_drawing(run.spans)
    if not spans:
        return []
    aside = merge_spans((e.span for e in spans if e.lane == "driver" and e.name in ASIDE), gap_s=0.0)
    total = _seconds(merge_spans((e.span for e in spans), gap_s=0.0)) - _seconds(aside)
    found = []
    for lane in _lanes(spans):
        if lane == "driver":
            continue
        busy = _seconds(merge_spans((e.span for e in spans if e.lane == lane), gap_s=0.0))
        share = busy / total if total > 0 else 0.0
        found.append(LaneShare(lane, share, f"{lane} busy {100 * share:.0f} %"))
    return found


def _seconds(spans: Sequence[Span]) -> float:
    return sum(span.end - span.start for span in spans)


def _worth_drawing(spans: Sequence[LaneSpan]) -> list[LaneSpan]:
    """Without the start, which takes minutes and hides the rest."""
    return [each for each in spans if each.name != "start"]


def _lanes(spans: Sequence[LaneSpan]) -> list[str]:
    """Driver, actors, ranks; each by number."""

    def order(lane: str) -> tuple[int, str, int]:
        kind, _, number = lane.rpartition("-")
        return ("driver", "actor", "rank").index(kind or lane), kind, int(number) if number.isdigit() else 0

    return sorted({each.lane for each in spans}, key=order)


def _first_view(spans: Sequence[LaneSpan], origin: float) -> float:
    phases = [each.span.end for each in spans if each.lane == "driver"]
    ends = phases[:_FIRST_VIEW_PHASES] or [each.span.end for each in spans]
    return round(max(ends) - origin, 3)
