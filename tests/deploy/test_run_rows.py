"""A run's numbers are kept small, and are what the file says."""

from __future__ import annotations

import math

from deploy.run_rows import RunRows


def test_a_row_holds_its_lines_numbers_and_those_that_are_not_finite() -> None:
    rows = RunRows()
    for step, loss in ((1, 0.5), (2, "NaN")):
        rows.append({"step": step, "time": 7.0, "loss/total": loss})
    rows.append({"step": 2, "time": 8.0, "eval_rollout_f1": 0.25})
    first, second = rows.steps
    assert dict(first) == {"step": 1.0, "time": 7.0, "loss/total": 0.5}
    assert (first.get("loss/ce"), "loss/ce" in first, len(first)) == (None, False, 3)
    assert math.isnan(second["loss/total"])
    assert [dict(row) for row in rows.evaluations] == [{"step": 2.0, "time": 8.0, "eval_rollout_f1": 0.25}]


def test_rows_are_in_order_and_of_a_step_that_was_repeated_the_later() -> None:
    rows = RunRows()
    for step, loss in ((1, 1.0), (3, 2.0), (2, 3.0), (3, 4.0)):
        rows.append({"step": step, "loss/total": loss})
    assert [(row["step"], row["loss/total"]) for row in rows.steps] == [(1, 1.0), (2, 3.0), (3, 4.0)]


def test_the_rows_of_a_run_take_eight_bytes_a_number() -> None:
    rows = RunRows()
    for step in range(3):
        rows.append({"step": step, "loss/total": 1.0} | {f"name{at}": float(at) for at in range(100)})
    first, last = rows.steps[0], rows.steps[-1]
    assert first._at is last._at, "names are kept once"
    assert last._values.itemsize * len(last._values) == 8 * 102
