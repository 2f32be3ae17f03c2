"""Panels and dashboards as Grafana's JSON model (schema version 39, Grafana 10 and later).

Expressions are made from the metric table, so a metric that is renamed breaks the dashboards' test and not a screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from protocol.metric_series import series
from protocol.metric_table import metric

DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
WIDTH = 24
"""Columns of Grafana's grid."""
RATE = "$__rate_interval"


def of(name: str, where: str = "") -> str:
    """The series of the metric `name` for the chosen runs; `where` is added to its selector."""
    return f"{series(metric(name))}{{{_chosen(where)}}}"


def rate_of(name: str) -> str:
    """Increase per second of a counter."""
    return f"rate({of(name)}[{RATE}])"


def quantile_of(share: float, name: str, by: str = "") -> str:
    """A quantile of a histogram over the runs' recent observations; `by` keeps a label."""
    kept = ", ".join(filter(None, ("run", by, "le")))
    return f"histogram_quantile({share}, sum by ({kept}) (rate({_bucket(name)}[{RATE}])))"


def buckets_of(name: str) -> str:
    """Observations of a histogram per bucket, for a heat map."""
    return f"sum by (le) (increase({_bucket(name)}[{RATE}]))"


def _bucket(name: str) -> str:
    return f"{series(metric(name))}_bucket{{{_chosen('')}}}"


def _chosen(where: str) -> str:
    return 'run=~"$run"' + (f", {where}" if where else "")


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `queries` are (expression, legend)."""

    title: str
    queries: Sequence[tuple[str, str]]
    kind: str = "timeseries"
    """`timeseries`, `stat`, `heatmap`, `state-timeline` or `table`."""
    unit: str = "short"
    """Grafana's unit: `percentunit`, `s`, `bytes`, `ops`, ..."""
    width: int = 8
    height: int = 7
    text: str = ""
    """Shown behind the panel's (i)."""
    stacked: bool = False
    lowest: float | None = None
    highest: float | None = None

    def as_json(self, number: int, x: int, y: int) -> dict[str, Any]:
        """`number` is the panel's id; `x` and `y` are grid cells."""
        return {
            "id": number,
            "title": self.title,
            "description": self.text,
            "type": self.kind,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "targets": [self._target(index, *query) for index, query in enumerate(self.queries)],
            "fieldConfig": {"defaults": self._defaults(), "overrides": []},
            "options": _OPTIONS.get(self.kind, {}),
        }

    def _target(self, index: int, expression: str, legend: str) -> dict[str, Any]:
        return {
            "refId": chr(ord("A") + index),
            "datasource": DATASOURCE,
            "expr": expression,
            "legendFormat": legend,
            "instant": self.kind == "table",
            "format": {"heatmap": "heatmap", "table": "table"}.get(self.kind, "time_series"),
        }

    def _defaults(self) -> dict[str, Any]:
        defaults: dict[str, Any] = {"unit": self.unit}
        if self.lowest is not None:
            defaults["min"] = self.lowest
        if self.highest is not None:
            defaults["max"] = self.highest
        if self.kind == "timeseries":
            stacking = {"mode": "normal" if self.stacked else "none"}
            defaults["custom"] = {"fillOpacity": 40 if self.stacked else 5, "stacking": stacking, "showPoints": "auto"}
        return defaults


_LEGEND = {"displayMode": "list", "placement": "bottom", "showLegend": True}
_OPTIONS: dict[str, dict[str, Any]] = {
    "timeseries": {"legend": _LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}, "colorMode": "value"},
    "heatmap": {"calculate": False, "yAxis": {"unit": "short"}, "color": {"scheme": "Oranges", "mode": "scheme"}},
    "state-timeline": {"showValue": "never", "legend": _LEGEND, "mergeValues": True},
    "table": {"showHeader": True},
}


def dashboard(uid: str, title: str, panels: Sequence[Panel]) -> dict[str, Any]:
    """The importable JSON of one dashboard; panels flow from left to right."""
    return {
        "uid": f"rollmatch-{uid}",
        "title": f"rollmatch / {title}",
        "tags": ["rollmatch"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": [_datasource_variable(), _run_variable()]},
        "annotations": {"list": []},
        "links": [
            {
                "type": "dashboards",
                "title": "rollmatch",
                "tags": ["rollmatch"],
                "asDropdown": True,
                "keepTime": True,
                "includeVars": True,
            }
        ],
        "panels": _flow(panels),
    }


def _flow(panels: Sequence[Panel]) -> list[dict[str, Any]]:
    placed, x, y, row_height = [], 0, 0, 0
    for number, panel in enumerate(panels, start=1):
        if x + panel.width > WIDTH:
            x, y, row_height = 0, y + row_height, 0
        placed.append(panel.as_json(number, x, y))
        x, row_height = x + panel.width, max(row_height, panel.height)
    return placed


def _datasource_variable() -> dict[str, Any]:
    return {"name": "datasource", "label": "Datasource", "type": "datasource", "query": "prometheus", "refresh": 1}


def _run_variable() -> dict[str, Any]:
    query = f"label_values({series(metric('run/step'))}, run)"
    return {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "run"},
        "refresh": 2,
        "sort": 1,
        "includeAll": True,
        "multi": True,
        "allValue": ".+",
        "current": {"text": ["All"], "value": ["$__all"]},
    }
