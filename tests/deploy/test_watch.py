"""The live view: one frame says where the run is, what it waits for, and what stands out; it ends with the run."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from deploy.cli import main
from deploy.run_files import KEEP_S, JsonLines, RunData, RunReader, read_run
from deploy.watch import View, has_ended, sparkline
from tests.deploy.rollouts import ROOT
from tests.deploy.runs import START, write_run


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def shown(data: RunData, now: float) -> str:
    console = Console(width=120, record=True, quiet=False)
    with console.capture() as captured:
        console.print(View().frame(data, now))
    return captured.get()


def test_a_living_run_says_its_step_and_what_it_waits_for(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", finished=False, truncated=0.37)
    with (run / "events.jsonl").open("a") as events:
        phase = {"time": START + 208, "kind": "phase", "name": "rollout", "waiting_for": "12 of 32 segments"}
        phase["since"] = START + 205
        events.write(json.dumps(phase) + "\n")
    text = shown(read_run(run), START + 212)
    assert "step 20/20" in text
    assert "rollout for 7 s, waiting for 12 of 32 segments" in text
    assert "2 of 1 actors take requests, policy version 3" in text
    assert "truncation rose from 0 % to 37 % after step 10" in " ".join(text.replace("│", " ").split())
    assert "alive" not in text
    assert text.index("1 to act on") < text.index("precision"), "a low terminal shows the findings"
    assert "is it still alive?" in shown(read_run(run), START + 900)


def test_a_living_run_says_how_long_it_will_take_at_the_pace_since_its_last_start(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", steps=20, finished=False, training__max_steps=50)
    assert "about 0:04:52 left" in shown(read_run(run), START + 208)
    with (run / "events.jsonl").open("a") as events:
        events.write(json.dumps({"time": START + 5000, "kind": "resume", "step": 20}) + "\n")
    assert "left" not in shown(read_run(run), START + 5008), "no step of this session is done"
    with (run / "events.jsonl").open("a") as events, (run / "metrics.jsonl").open("a") as metrics:
        span = {"time": START + 5106, "kind": "span", "lane": "driver", "name": "rollout"}
        events.write(json.dumps(span | {"start": START + 5100, "end": START + 5106}) + "\n")
        metrics.write(json.dumps({"step": 22, "time": START + 5140, "loss/total": 1.0}) + "\n")
    assert "about 0:09:20 left" in shown(read_run(run), START + 5140)
    assert "left" not in shown(read_run(write_run(tmp_path / "two", training__max_steps=50)), START + 208), "it ended"


def test_busy_shares_are_those_of_the_newest_minute(tmp_path: Path) -> None:
    lines = shown(read_run(write_run(tmp_path / "one")), START).splitlines()
    shares = {line.split()[0]: line.split()[1] for line in lines if line.startswith(("actor-", "rank-"))}
    assert shares == {"actor-0": "62", "actor-1": "40", "rank-0": "35", "rank-1": "15"}


def test_of_a_long_run_the_spans_of_the_last_minutes_are_kept_and_a_lane_that_went_silent_is_one(
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path / "one", steps=100, finished=False)
    silent = {"time": START, "kind": "span", "lane": "actor-7", "name": "parse", "start": START - 1, "end": START}
    text = (run / "events.jsonl").read_text()
    (run / "events.jsonl").write_text(json.dumps(silent) + "\n" + text)
    data = RunReader(run).read()
    assert min(each.span.end for each in data.spans if each.lane != "actor-7") >= START + 1000 - KEEP_S - 20
    assert re.search(r"actor-7 +0 % +nothing in this time", shown(data, START + 1000))
    assert len(read_run(run).spans) > 2 * len(data.spans), "the report has them all"


def test_what_is_made_of_all_steps_is_made_anew_for_a_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, made, view = read_run(write_run(tmp_path / "one")), [], View()
    monkeypatch.setattr("deploy.watch.findings", lambda *_, **__: made.append(1) or [])
    for each in (data, data, replace(data, steps=data.steps[:-1])):
        view.frame(each, START)
    assert len(made) == 2


def test_a_frame_needs_no_ledger(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    (run / "ledger.jsonl").write_text("the report alone counts what was trained\n")
    assert main(["watch", str(run), "--once"]) == 0


def test_one_frame_can_be_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "one", finished=False)
    assert main(["watch", str(run), "--once"]) == 0
    shown = capsys.readouterr().out
    assert "F1, evaluation" in shown
    assert re.search(r"exact descriptions +0\.400 +0\.440 ", shown)


def test_the_view_ends_with_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "one")
    assert main(["watch", str(run)]) == 0
    assert "finished after 200 s" in capsys.readouterr().out
    failed = write_run(tmp_path / "two", finished=False)
    assert not has_ended(read_run(failed))
    with (failed / "events.jsonl").open("a") as events:
        events.write(json.dumps({"time": START, "kind": "end", "error": "EngineError: gone"}) + "\n")
    assert main(["watch", str(failed)]) == 0
    assert "ended: EngineError: gone" in capsys.readouterr().out


def test_a_run_that_was_resumed_after_its_end_is_followed_again(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one", finished=False)
    with (run / "events.jsonl").open("a") as events:
        events.write(json.dumps({"time": START, "kind": "end", "error": "EngineError: gone"}) + "\n")
        events.write(json.dumps({"time": START, "kind": "resume", "step": 4}) + "\n")
    assert not has_ended(read_run(run))


def test_only_what_is_new_is_read_again_and_a_file_that_was_cut_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    lines = JsonLines(path, list)
    assert lines.read() == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert lines.read() == [{"a": 1}, {"a": 2}]
    path.write_text('broken!!\n{"a": 2}\n{"a": 3}\n')
    assert lines.read() == [{"a": 1}, {"a": 2}, {"a": 3}], "what was read is not read again"
    for shorter in ('{"a": 5}\n', '{"a": "another line"}\n'):
        path.write_text(shorter)
        assert lines.read() == [json.loads(shorter)]


def test_a_file_that_was_cut_and_written_on_to_the_same_length_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3)))
    lines = JsonLines(path, list)
    assert len(lines.read()) == 3
    path.write_text("".join(f'{{"step": {step}}}\n' for step in (1, 7, 8, 9)))
    assert [line["step"] for line in lines.read()] == [1, 7, 8, 9]


def test_a_sparkline_goes_from_the_smallest_to_the_largest_value() -> None:
    assert sparkline([1, 2, 3]) == "▁▅█"
    assert sparkline([5, 5]) == "▁▁"
    assert sparkline([1, float("nan"), float("inf"), 2]) == "▁  █"
    assert sparkline([]) == ""
    assert len(sparkline(range(1000), width=10)) == 10
