"""What the report draws of a long run: as many points as are seen, and a sentence that says what they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.report.charts import charts
from deploy.report.figures import MOST_POINTS, binned
from deploy.run_files import read_run
from tests.deploy.rollouts import ROOT
from tests.deploy.runs import write_run

NAN = float("nan")


def test_more_points_than_are_seen_become_means_of_as_many_steps() -> None:
    steps = [float(step) for step in range(1, 30_001)]
    bar = {"type": "bar", "name": "train", "x": steps, "y": [2.0 if step % 2 else 4.0 for step in steps]}
    few = {"type": "scatter", "x": [0.0, 100.0], "y": [0.5, 0.7]}
    figure, note = binned({"data": [bar, few], "layout": {"height": 290}})
    drawn, untouched = figure["data"]
    assert (len(drawn["x"]), drawn["x"][:2], drawn["x"][-1]) == (MOST_POINTS, [10.5, 30.5], 29_990.5)
    assert set(drawn["y"]) == {3.0}
    assert (drawn["name"], untouched, figure["layout"]) == ("train", few, {"height": 290})
    assert note == " Of more than 1500 points, means of 20 steps are drawn."


def test_what_is_not_finite_is_no_part_of_a_mean_and_a_bin_of_nothing_else_is_a_gap() -> None:
    values = [NAN, NAN, 3.0, float("inf"), *[1.0] * (2 * MOST_POINTS)]
    figure, note = binned({"data": [{"type": "scatter", "x": list(range(len(values))), "y": values}]})
    (drawn,) = figure["data"]
    assert drawn["y"][0] == pytest.approx(3.0), "of the first three steps"
    assert drawn["y"][1:3] == [1.0, 1.0]
    assert "means of 3 steps" in note
    gap, _ = binned({"data": [{"type": "scatter", "x": list(range(3000)), "y": [NAN, NAN, *[1.0] * 2998]}]})
    assert str(gap["data"][0]["y"][:2]) == "[nan, 1.0]"


def test_a_histogram_of_many_values_is_drawn_of_fewer_with_their_counts() -> None:
    figure, note = binned({"data": [{"type": "histogram", "x": [5, 5, 9] * 1000}]})
    (drawn,) = figure["data"]
    assert (drawn["x"], drawn["y"], drawn["histfunc"], note) == ([5.0, 9.0], [2000, 1000], "sum", "")


def test_every_series_of_a_long_run_is_short_and_its_chart_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    run = write_run(tmp_path / "one", steps=2 * MOST_POINTS)
    lines = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines[:60] = [line.replace(', "time/train_step_s": 3.0', "") for line in lines[:60]]
    (run / "metrics.jsonl").write_text("".join(lines))
    drawn = {chart.key: chart for chart in charts([read_run(run)])}
    assert max(len(trace["x"]) for chart in drawn.values() for trace in chart.figure["data"]) <= MOST_POINTS
    assert drawn["loss"].note == (
        "Per supervised token or coordinate. Of more than 1500 points, means of 2 steps are drawn."
    )
    assert drawn["lengths"].note == "Tokens per recorded rollout, before the end of turn."
    stacked = [trace["x"] for trace in drawn["step-time"].figure["data"]]
    assert len(stacked) == 2
    assert stacked[0] == stacked[1], "bars that do not stand on the same step are not stacked"
