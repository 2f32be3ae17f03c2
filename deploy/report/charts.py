"""The report's figures as plotly JSON: `{"data": [...], "layout": {...}}`, made of plain values only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from deploy.report.figures import COLOURS, PHASE_COLOURS, Figure, binned, layout
from deploy.run_files import RunData


class Chart(NamedTuple):
    """A figure with its place on the page."""

    key: str
    title: str
    note: str
    """One sentence below the title."""
    figure: Figure


def charts(runs: Sequence[RunData]) -> list[Chart]:
    """Every chart that the runs have numbers for."""
    every = (*_learning(runs), *_pace(runs), *_recorded(runs), *_words(runs))
    return [_drawable(chart) for chart in every if chart.figure["data"]]


def _drawable(chart: Chart) -> Chart:
    figure, note = binned(chart.figure)
    return chart._replace(figure=figure, note=chart.note + note)


def _learning(runs: Sequence[RunData]) -> Iterator[Chart]:
    """Whether the model gets better, and what it is taught."""
    scores = _evaluated(runs, _lines(runs, {"rollout/f1": "rollouts"}, y_range=[0, 1]), "eval_rollout_f1")
    yield Chart("f1", "F1", "By shape alone. Line: rollouts as they are trained on. Diamonds: evaluation.", scores)
    yield Chart(
        "precision-recall",
        "Precision and recall",
        "Of the rollouts. Precision that falls while recall rises: duplicates, or no stop.",
        _lines(runs, {"rollout/precision": "precision", "rollout/recall": "recall"}, y_range=[0, 1]),
    )
    parts = {
        "loss/ce": "cross-entropy",
        "loss/coord_tail": "coordinates, tail",
        "loss/coord_prefix": "coordinates, prefix",
    }
    yield Chart("loss", "Loss parts", "Per supervised token or coordinate.", _lines(runs, parts, from_zero=True))
    yield Chart(
        "gradient",
        "Gradient norm",
        "Before clipping. Far above training.max_grad_norm all the time: lower training.learning_rate.",
        _lines(runs, {"train/grad_norm": "gradient norm"}, from_zero=True),
    )
    yield Chart(
        "objects",
        "Objects per sample",
        "Predictions that run away from the ground truth are a precision collapse.",
        _lines(runs, {"rollout/pred_per_sample": "predicted", "rollout/gt_per_sample": "ground truth"}, from_zero=True),
    )
    shares = {
        "rollout/parse_truncated_rate": "truncated rollouts",
        "rollout/parse_obj_drop_frac": "rejected objects",
        "rollout/duplicate_rate": "duplicates",
    }
    yield Chart(
        "format",
        "Format health",
        "Each should stay near zero. Act above 5 % truncated, 10 % rejected, 10 % repeated.",
        _lines(runs, shares, from_zero=True, percent=True),
    )


def _pace(runs: Sequence[RunData]) -> Iterator[Chart]:
    """How fast it goes, and where the time is spent."""
    yield Chart(
        "throughput",
        "Throughput",
        "Rollouts accepted per second of wall time, per window.",
        _lines(runs, {"rollout/rollouts_per_s": "rollouts/s"}, from_zero=True),
    )
    tokens = {"rollout/gen_tokens_per_s": "generated tokens/s", "train/tokens_per_s": "trained tokens/s"}
    yield Chart(
        "tokens", "Tokens per second", "While generating, and while training.", _lines(runs, tokens, from_zero=True)
    )
    yield Chart("step-time", "Where a step's time goes", "Seconds of the driver's loop per step.", _step_time(runs))
    yield Chart(
        "fill",
        "Pack fill",
        "Tokens over capacity, over all ranks.",
        _lines(runs, {"packing/post_rollout_fill": "fill"}, y_range=[0, 1]),
    )


def _recorded(runs: Sequence[RunData]) -> Iterator[Chart]:
    """What single rollouts are like."""
    yield Chart(
        "lengths",
        "Rollout lengths",
        "Tokens per recorded rollout, before the end of turn.",
        _lengths(runs, "rollout_len"),
    )
    yield Chart(
        "encoded", "Segment lengths", "Tokens per recorded segment, prompt included.", _lengths(runs, "encoded_len")
    )
    yield Chart("latency", "Rollout latency", "Seconds from the call to the last token.", _latency(runs))
    if any(run.setting("rollout.max_staleness", 0) for run in runs):  # else always 0
        yield Chart(
            "staleness",
            "Staleness",
            "Published versions by which a window's oldest rollout lags behind.",
            _lines(runs, {"policy/staleness_max": "staleness"}, from_zero=True),
        )


def _words(runs: Sequence[RunData]) -> Iterator[Chart]:
    """What the answers say beside shapes."""
    descs = {
        "rollout/desc_exact_acc_on_matched": "same words",
        "rollout/desc_sem_acc_on_matched": "same meaning",
        "rollout/desc_sem_sim_mean": "mean similarity",
    }
    words = _evaluated(runs, _lines(runs, descs, y_range=[0, 1]), "eval_rollout_desc_exact_acc_on_matched")
    is_taught = any(run.setting("custom.extra.rollout_matching.teach_format", False) for run in runs)
    trained = (
        "Only where teach_format finds nothing to keep a loss trains them." if is_taught else "No loss trains them."
    )
    yield Chart(
        "descs",
        "Descriptions of matched pairs",
        f"Diamonds: same words in the evaluation. Lines: the desc monitor. {trained}",
        words,
    )
    yield Chart("rejects", "Why objects were rejected", "Among the recorded rollouts.", _rejects(runs))


def _axis(y_range: list[float] | None, from_zero: bool, percent: bool) -> dict[str, Any]:
    axis: dict[str, Any] = {"range": y_range} if y_range else {"rangemode": "tozero"} if from_zero else {}
    return axis | ({"tickformat": ".0%"} if percent else {})


def _lines(
    runs: Sequence[RunData],
    metrics: dict[str, str],
    *,
    y_range: list[float] | None = None,
    from_zero: bool = False,
    percent: bool = False,
) -> Figure:
    """A line per run and metric. One run: a colour per metric. Several: a colour per run, a dash per metric."""
    dashes = ("solid", "dot", "dash", "dashdot")
    data = []
    for at, run in enumerate(runs):
        for number, (metric, label) in enumerate(metrics.items()):
            steps, values = run.series(metric)
            if not steps:
                continue
            alone = len(runs) == 1
            name = label if alone else run.name if len(metrics) == 1 else f"{run.name}: {label}"
            colour, dash = (number, "solid") if alone else (at, dashes[number % 4])
            line = {"color": COLOURS[colour % len(COLOURS)], "width": 2, "dash": dash}
            mode = "lines+markers" if len(steps) < 3 else "lines"
            data.append({"type": "scatter", "mode": mode, "name": name, "x": steps, "y": values, "line": line})
    return {"data": data, "layout": layout(yaxis=_axis(y_range, from_zero, percent))}


def _evaluated(runs: Sequence[RunData], figure: Figure, metric: str) -> Figure:
    """The figure with the evaluations' values as diamonds."""
    for at, run in enumerate(runs):
        steps, values = run.series(metric)
        if steps:
            name = "evaluation" if len(runs) == 1 else f"{run.name}: evaluation"
            colour = "#d97706" if len(runs) == 1 else COLOURS[at % len(COLOURS)]
            marker = {"symbol": "diamond", "size": 10, "color": colour}
            line = {"dash": "dot", "width": 1, "color": colour}
            trace = {"type": "scatter", "mode": "lines+markers", "name": name, "x": steps, "y": values}
            figure["data"].append(trace | {"marker": marker, "line": line, "cliponaxis": False})
    return figure


def _step_time(runs: Sequence[RunData]) -> Figure:
    """Stacked bars of the first run: a comparison of stacks reads badly, throughput compares better."""
    parts = {
        "time/wait_rollouts_s": ("wait for rollouts", PHASE_COLOURS["rollout"]),
        "time/train_step_s": ("train", PHASE_COLOURS["train"]),
        "time/sync_s": ("sync", PHASE_COLOURS["sync"]),
    }
    steps, data = [row["step"] for row in runs[0].steps], []
    for metric, (label, colour) in parts.items():
        if any(metric in row for row in runs[0].steps):  # a step without it took no time for it
            values = [row.get(metric, 0.0) for row in runs[0].steps]
            data.append({"type": "bar", "name": label, "x": steps, "y": values, "marker": {"color": colour}})
    return {"data": data, "layout": layout(barmode="stack", yaxis={"title": {"text": "seconds"}})}


def _lengths(runs: Sequence[RunData], name: str) -> Figure:
    return _histogram(runs, [[getattr(each.trace.stats, name) for each in run.rollouts] for run in runs], "tokens")


def _latency(runs: Sequence[RunData]) -> Figure:
    return _histogram(runs, [[round(each.latency_s, 3) for each in run.rollouts] for run in runs], "seconds")


def _histogram(runs: Sequence[RunData], values: Sequence[Sequence[float]], unit: str) -> Figure:
    data = [
        {
            "type": "histogram",
            "name": f"{run.name}, {len(found)} rollouts",
            "x": list(found),
            "nbinsx": 40,
            "opacity": 0.75,
            "marker": {"color": COLOURS[at % len(COLOURS)], "line": {"color": "white", "width": 1}},
        }
        for at, (run, found) in enumerate(zip(runs, values, strict=True))
        if found
    ]
    axes = {"xaxis": {"title": {"text": unit}}, "yaxis": {"title": {"text": "rollouts"}}}
    return {"data": data, "layout": layout(barmode="overlay", bargap=0.02, **axes)}


def _rejects(runs: Sequence[RunData]) -> Figure:
    data = []
    for at, run in enumerate(runs):
        counts = Counter(str(reject.reason) for each in run.rollouts for reject in each.trace.rejects)
        if counts:
            reasons, numbers = zip(*counts.most_common(), strict=True)
            bar = {"type": "bar", "name": run.name, "x": list(reasons), "y": list(numbers)}
            data.append(bar | {"marker": {"color": COLOURS[at % len(COLOURS)]}})
    return {"data": data, "layout": layout(xaxis={"title": {"text": ""}}, yaxis={"title": {"text": "objects"}})}
