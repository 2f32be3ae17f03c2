"""What all figures share: colours, a layout, and no more points than a browser draws at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Figure = dict[str, Any]
COLOURS = ("#2563eb", "#d97706", "#059669", "#9333ea", "#dc2626", "#0891b2", "#be185d", "#65a30d")

PHASE_COLOURS = {
    "generate": "#2563eb",
    "parse": "#7c3aed",
    "train": "#059669",
    "sync": "#d97706",
    "rollout": "#93c5fd",
    "evaluate": "#64748b",
    "save": "#be185d",
}
"""Of timeline bars, and of the same things elsewhere."""

MOST_POINTS = 1500
"""Of a series: no screen shows more, and a browser draws three bars for each of 30,000 steps in half a minute."""

Trace = dict[str, Any]


def layout(**more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "margin": {"l": 52, "r": 16, "t": 8, "b": 40},
        "height": 290,
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#334155"},
        "xaxis": {"title": {"text": "optimizer step"}, "gridcolor": "#eef2f7", "zeroline": False},
        "yaxis": {"gridcolor": "#eef2f7", "zerolinecolor": "#e2e8f0"},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "hovermode": "x unified",
        "showlegend": True,
    }
    for name, value in more.items():
        base[name] = base[name] | value if isinstance(base.get(name), dict) else value
    return base


def binned(figure: Figure) -> tuple[Figure, str]:
    """The figure with MOST_POINTS points to a series at most, and a sentence where points became means of several
    steps. A histogram's values become fewer ones with their counts."""
    found = [_binned(trace) for trace in figure["data"]]
    steps = max(width for _, width in found)
    note = f" Of more than {MOST_POINTS} points, means of {steps} steps are drawn." if steps > 1 else ""
    return figure | {"data": [trace for trace, _ in found]}, note


def _binned(trace: Trace) -> tuple[Trace, int]:
    """Values that are not finite are no part of a mean; where a bin holds no others, there is a gap."""
    if len(trace["x"]) <= MOST_POINTS:
        return trace, 1
    if trace["type"] == "histogram":
        return trace | _counted(trace["x"]), 1
    steps, values = np.asarray(trace["x"]), np.asarray(trace["y"])
    width = math.ceil((steps[-1] - steps[0] + 1) / MOST_POINTS)
    at = ((steps - steps[0]) // width).astype(int)
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        means = np.bincount(at, np.where(known, values, 0.0)) / np.bincount(at, known)
    there = np.unique(at)
    return trace | {"x": (steps[0] + width * (there + 0.5) - 0.5).tolist(), "y": means[there].tolist()}, width


def _counted(values: Sequence[float]) -> Trace:
    """Neighbours are one value, their mean, with their number."""
    counts, edges = np.histogram(values, MOST_POINTS)
    sums, _ = np.histogram(values, edges, weights=values)
    there = counts > 0
    return {"x": (sums[there] / counts[there]).tolist(), "y": counts[there].tolist(), "histfunc": "sum"}
