"""The live lines on a terminal, the log lines elsewhere, and the final tables."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from deploy.progress import PATIENCE_S, TrainProgress, counted
from deploy.tables import print_before_after, print_metrics

STEP = {
    "step": 12,
    "policy/version": 6.0,
    "rollout/f1": 0.612,
    "loss/total": 2.314,
    "rollout/rollouts_per_s": 3.2,
    "rollout/gen_tokens_per_s": 410.0,
    "packing/post_rollout_fill": 0.93,
}


class Clock:
    """Time that passes when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def screen(*, terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=120, color_system=None), text


def test_a_terminal_shows_health_and_what_is_waited_for() -> None:
    console, text = screen(terminal=True)
    clock = Clock()
    with TrainProgress(60, console=console, clock=clock) as progress:
        progress.phase("rollout", "12 of 32 segments")
        assert "left" not in text.getvalue()
        clock.now += 20
        progress.step(STEP)
        progress.step({"eval_rollout_f1": 0.587})
    shown = text.getvalue()
    for part in (
        "step 12/60",
        "━",
        "0:00:20, about 0:01:20 left",
        "policy 6",
        "F1 0.612 (evaluation 0.587)",
        "loss 2.314",
        "3.2 rollouts/s",
    ):
        assert part in shown
    for part in ("410 tokens/s", "fill 0.93", "rollout 0:00:20, waiting for 12 of 32 segments"):
        assert part in shown


def test_without_a_terminal_steps_and_phases_become_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    console, text = screen(terminal=False)
    with caplog.at_level(logging.INFO, "rollmatch"), TrainProgress(60, console=console, clock=Clock()) as progress:
        progress.phase("train", "the optimizer step")
        progress.step(STEP)
    assert text.getvalue() == ""
    assert caplog.messages == [
        "train, waiting for the optimizer step",
        "step 12/60  F1 0.612  loss 2.314  policy 6  3.2 rollouts/s  410 tokens/s  fill 0.93",
    ]


def test_a_checkpoint_is_no_second_line_of_its_step(caplog: pytest.LogCaptureFixture) -> None:
    console, _ = screen(terminal=False)
    with caplog.at_level(logging.INFO, "rollmatch"), TrainProgress(60, console=console, clock=Clock()) as progress:
        progress.step({"step": 12, "time/checkpoint_s": 3.0})
    assert caplog.messages == []


def test_another_thing_to_wait_for_in_the_same_phase_is_told(caplog: pytest.LogCaptureFixture) -> None:
    console, _ = screen(terminal=False)
    with caplog.at_level(logging.INFO, "rollmatch"), TrainProgress(60, console=console, clock=Clock()) as progress:
        for waited in ("Ray", "2 engines", "1 engines"):
            progress.phase("start", waited)
    assert caplog.messages == ["start, waiting for Ray", "start, waiting for 2 engines"]


def test_a_narrow_terminal_shows_the_score_and_the_loss_in_one_line() -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=80, color_system=None)
    clock = Clock()
    with TrainProgress(1000, console=console, clock=clock) as progress:
        progress.phase("rollout", "32 of 32 segments")
        clock.now += 120
        progress.step(STEP | {"step": 120})
        progress.step({"eval_rollout_f1": 0.587})
    (line,) = [each for each in text.getvalue().splitlines() if "F1" in each][-1:]
    assert "step 120/1000  0:02:00, 0:14:40 left  F1 0.612 (evaluation 0.587)  loss 2.314" in line
    assert len(line.replace("\x1b[?25l", "")) <= 80


def test_the_time_left_is_told_from_two_steps_of_this_session_on_and_runs_down(
    caplog: pytest.LogCaptureFixture,
) -> None:
    console, _ = screen(terminal=False)
    clock = Clock()
    with caplog.at_level(logging.INFO, "rollmatch"), TrainProgress(60, console=console, clock=clock) as progress:
        progress.rewind(20)
        clock.now += 1000  # a start, which is no step's time
        progress.phase("rollout", "32 of 32 segments")
        told = []
        for step in (21, 22):
            clock.now += 30
            progress.step({"step": step, "rollout/f1": 0.5, "loss/total": 1.0})
            told.append(caplog.messages[-1].partition("about ")[2])
        clock.now += 10
        progress.step({"eval_rollout_f1": 0.5})
        told.append(caplog.messages[-1].partition("about ")[2])
        progress.rewind(20)
        progress.step({"step": 20, "rollout/f1": 0.5, "loss/total": 1.0})
        told.append(caplog.messages[-1].partition("about ")[2])
    assert told == ["", "0:19:00 left", "0:18:50 left", ""]


def test_a_notice_stays_below_the_live_lines_and_is_written_at_once_elsewhere(
    capfd: pytest.CaptureFixture[str],
) -> None:
    console, text = screen(terminal=True)
    with TrainProgress(60, console=console, clock=Clock()) as progress:
        progress.notice("finishing this window")
        progress.phase("save", "the checkpoint of step 12")
    *_, last, end = text.getvalue().split("\n")
    assert last.rstrip() == "finishing this window", end
    assert capfd.readouterr().err == ""
    console, text = screen(terminal=False)
    with TrainProgress(60, console=console, clock=Clock()) as progress:
        progress.notice("finishing this window")
    assert capfd.readouterr().err == "rollmatch: finishing this window\n"


def test_a_long_wait_is_logged_again_but_not_at_every_poll(caplog: pytest.LogCaptureFixture) -> None:
    console, _ = screen(terminal=False)
    clock = Clock()
    with caplog.at_level(logging.INFO, "rollmatch"), TrainProgress(60, console=console, clock=clock) as progress:
        for waiting in range(700):
            progress.phase("rollout", f"{700 - waiting} segments")
            clock.now += 0.125
    assert caplog.messages == [
        "rollout, waiting for 700 segments",
        "rollout 0:00:30, waiting for 460 segments",
        "rollout 0:01:00, waiting for 220 segments",
    ]


def test_the_final_table_shows_what_changed() -> None:
    console, text = screen(terminal=False)
    print_before_after({"eval_rollout_f1": 0.55, "eval_runtime": 3.0}, {"eval_rollout_f1": 0.73}, console=console)
    row = next(line for line in text.getvalue().splitlines() if "f1" in line)
    assert [part in row for part in ("0.5500", "0.7300", "+0.18")] == [True] * 3
    assert "runtime" not in text.getvalue()


def test_a_share_of_no_pairs_is_no_row() -> None:
    console, text = screen(terminal=False)
    names = [f"eval_rollout_desc_{name}" for name in ("pairs_total", "exact_acc_on_matched")]
    none, some = dict(zip(names, (0.0, 1.0), strict=True)), dict(zip(names, (4.0, 0.5), strict=True))
    print_before_after(none, some, console=console)
    print_metrics(none, console=console)
    assert "exact_acc" not in text.getvalue()
    print_before_after(some, some, console=console)
    assert "exact_acc" in text.getvalue()


def test_the_evaluation_table_has_every_metric() -> None:
    console, text = screen(terminal=False)
    print_metrics({"eval_rollout_f1": 0.5, "eval_rollout_gt_objects": 40.0}, console=console)
    assert "0.5000" in text.getvalue()
    assert "40" in text.getvalue()


@pytest.mark.parametrize(
    ("terminal", "seconds_each", "shown"), [(True, 1.0, True), (True, 0.1, False), (False, 1.0, False)]
)
def test_a_terminal_shows_how_far_work_is_that_lasts(terminal: bool, seconds_each: float, shown: bool) -> None:
    console, text = screen(terminal=terminal)
    clock = Clock()
    taken = []
    for item in counted(range(10), "checking [the] images", console=console, clock=clock):
        assert text.getvalue() == "" or clock.now - 100 >= PATIENCE_S
        taken.append(item)
        clock.now += seconds_each
    assert taken == [*range(10)]
    assert ("checking [the] images" in text.getvalue() and "10/10" in text.getvalue()) == shown
    assert (text.getvalue() != "") == shown
