"""One HTML file: figures, findings, samples, settings. Plotly stands in it once; nothing is loaded from anywhere."""

from __future__ import annotations

import json
import pkgutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from deploy.health_numbers import LEVEL_WORDS, HealthFinding
from deploy.health_rules import findings, verdict
from deploy.report.charts import charts
from deploy.report.samples import Sample, before_and_after, best_and_worst
from deploy.report.timeline import LaneShare, lane_shares, timeline_figure
from deploy.run_files import RunData
from deploy.target_html import MASK_CSS, legend_html


class Tile(NamedTuple):
    """A number of the summary."""

    label: str
    value: str
    note: str = ""


class RunView(NamedTuple):
    """What the template shows of one run."""

    run: RunData
    state: str
    state_class: str
    verdict: str
    """The findings in a few words."""
    verdict_class: str
    tiles: list[Tile]
    findings: list[HealthFinding]
    shares: list[LaneShare]
    timeline: str | None
    """Key of its figure."""
    best: list[Sample]
    worst: list[Sample]
    evaluated: list[tuple[Sample, Sample]]
    """The same images at the first and the last evaluation."""


def render(runs: Sequence[RunData]) -> str:
    """The whole page."""
    curves = charts(runs)
    figures = {chart.key: chart.figure for chart in curves}
    views = [_view(run, at, figures) for at, run in enumerate(runs)]
    environment = Environment(
        loader=PackageLoader("deploy.report", "templates"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html.j2").render(
        title=" · ".join(run.name for run in runs),
        made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        views=views,
        charts=curves,
        figures=Markup(_script_safe(json.dumps(figures))),
        plotly=Markup(_plotly()),
        mask_css=Markup(MASK_CSS),
        legend=Markup(legend_html()),
        levels=LEVEL_WORDS,
        side_by_side=_side_by_side(views),
        differences=_differences(runs),
        markup=Markup,
        dump=lambda values: json.dumps(values, indent=2, ensure_ascii=False),
    )


def write_report(runs: Sequence[RunData], path: Path) -> None:
    """Renders into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(runs), encoding="utf-8")


def _view(run: RunData, at: int, figures: dict[str, Any]) -> RunView:
    figure = timeline_figure(run)
    key = f"timeline-{at}" if figure else None
    if key is not None:
        figures[key] = figure
    state, state_class = run_state(run)
    best, worst = best_and_worst(run)
    found = findings(run.steps, run.evaluations, run.setting, run.events, finished=run.summary is not None)
    level, words = verdict(found)
    return RunView(
        run=run,
        state=state,
        state_class=state_class,
        verdict=words,
        verdict_class=level,
        tiles=_tiles(run),
        findings=found,
        shares=lane_shares(run),
        timeline=key,
        best=best,
        worst=worst,
        evaluated=before_and_after(run),
    )


def run_state(run: RunData) -> tuple[str, str]:
    """In words, and as a class: finished, failed, or still without an end."""
    if run.summary is not None:
        return "finished", "plain"
    if run.error is not None:
        return f"ended: {run.error}", "bad"
    return "running, or killed", "plain"


def _tiles(run: RunData) -> list[Tile]:
    return [tile for tile in _every_tile(run) if tile.value]


def _every_tile(run: RunData) -> Iterator[Tile]:
    _, scores = run.series("eval_rollout_f1")
    if scores:
        gain = f"by shape; {scores[-1] - scores[0]:+.3f}; best {max(scores):.3f}"
        yield Tile("F1, evaluation", f"{scores[0]:.3f} → {scores[-1]:.3f}", gain)
    _, trained = run.series("rollout/f1")
    if trained and not scores:
        yield Tile(
            "F1, rollouts",
            f"{trained[0]:.3f} → {trained[-1]:.3f}",
            f"by shape; first, last window; best {max(trained):.3f}",
        )
    for metric, label in (("precision", "Precision"), ("recall", "Recall")):
        _, values = run.series(f"eval_rollout_{metric}")
        if values:
            yield Tile(label, f"{values[0]:.2f} → {values[-1]:.2f}", "evaluation, first and last")
    _, exact = run.series("eval_rollout_desc_exact_acc_on_matched")
    if exact:
        yield Tile("Exact descriptions", f"{exact[0]:.2f} → {exact[-1]:.2f}", "of matched objects, evaluation")
    if run.steps:
        total = run.setting("training.max_steps", -1)
        yield Tile("Steps", f"{run.steps[-1]['step']:.0f}", f"of {total}" if total > 0 else "")
    if run.num_trained:
        yield Tile("Rollouts trained", f"{run.num_trained}", f"{len(run.rollouts)} recorded")
    _, rates = run.series("rollout/rollouts_per_s")
    if rates:
        yield Tile("Rollouts per second", f"{sorted(rates)[len(rates) // 2]:.2f}", "median over windows")
    _, fills = run.series("packing/post_rollout_fill")
    if fills:
        yield Tile("Pack fill", f"{100 * sum(fills) / len(fills):.0f} %", "mean")
    if run.summary is not None:
        restarts = f"restarts: {run.summary['restarts']} actors, {run.summary['learner_restarts']} learner"
        yield Tile("Wall time", f"{run.summary['wall_s']:.0f} s", restarts)


def _side_by_side(views: Sequence[RunView]) -> list[tuple[str, list[str]]]:
    """The runs' tiles, a row per label, with a value per run; empty where a run lacks it."""
    values = [{tile.label: tile.value for tile in view.tiles} for view in views]
    labels = dict.fromkeys(label for view in values for label in view)
    return [(label, [view.get(label, "") for view in values]) for label in labels]


def _differences(runs: Sequence[RunData]) -> list[tuple[str, list[str]]]:
    """Settings that are not the same in all runs, with each run's value."""
    flat = [dict(_flatten(run.config)) for run in runs]
    paths = sorted({path for settings in flat for path in settings})
    rows = [(path, [settings.get(path, "") for settings in flat]) for path in paths]
    return [(path, values) for path, values in rows if len(set(values)) > 1]


def _flatten(values: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", json.dumps(value)


def _plotly() -> str:
    found = pkgutil.get_data("plotly", "package_data/plotly.min.js")
    assert found is not None, "plotly's package holds its script"
    return _script_safe(found.decode("utf-8"))


def _script_safe(text: str) -> str:
    """A text inside <script> must not end it."""
    return text.replace("</script", "<\\/script")
