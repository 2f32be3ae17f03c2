"""Recorded rollouts: written behind the loop's back, bounded, found again, and never a reason to wait."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from actors.outcome import Outcome
from deploy.background import BackgroundWriter
from deploy.recorder import (
    EVALUATIONS,
    NAME,
    RecordedRollout,
    RolloutFile,
    append_evaluated,
    find_rollout,
    read_rollouts,
)
from deploy.rollout_log import RolloutLog
from deploy.timeline import Span, Timeline, merge_spans
from protocol.config import load_config
from protocol.contracts import EVALUATION_EPOCH, Record, RequestKey
from protocol.errors import ConfigError
from protocol.segments import SegmentStats
from protocol.traces import RolloutTrace
from tests.deploy.rollouts import MODEL, ROOT


def rollout(record: int, *, step: int = 0, tokens: int = 5, epoch: int = 0) -> RecordedRollout:
    trace = RolloutTrace(
        key=RequestKey(record, epoch),
        record=Record(index=record, source=f"t:{record + 1}", images=("x.png",), width=8, height=8, objects=()),
        seed=1,
        first_version=0,
        last_version=0,
        finish_reason="stop",
        prompt_len=3,
        token_ids=np.arange(tokens, dtype=np.int32),
        suffix_ids=(1, 2),
        predictions=(),
        rejects=(),
        pairs=(),
        stats=SegmentStats(),
    )
    return RecordedRollout(step=step, time=1.0, actor="actor-0", latency_s=0.5, encoded=trace.encode())


def test_what_is_recorded_is_found_by_its_key_and_the_later_line_counts(tmp_path: Path) -> None:
    file = RolloutFile(tmp_path, 1 << 20)
    file.append([rollout(1), rollout(2)])
    file.append([rollout(1, step=7)])

    assert find_rollout(tmp_path, RequestKey(1)).step == 7
    assert [each.trace.key.record for each in read_rollouts(tmp_path)] == [1, 2, 1]


def test_a_look_up_decodes_the_lines_of_its_key_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RolloutFile(tmp_path, 1 << 20).append([rollout(record) for record in (1, 11, 1, 2)])
    decoded, decode = [], RolloutTrace.from_line
    monkeypatch.setattr(RolloutTrace, "from_line", lambda line: decoded.append(line["key"]) or decode(line))
    assert find_rollout(tmp_path, RequestKey(1)).trace.key.record == 1
    assert decoded == [str(RequestKey(1))] * 2


def test_the_newest_rollouts_stay_within_the_bound(tmp_path: Path) -> None:
    bound = 8 * len(rollout(10).as_line())
    file = RolloutFile(tmp_path, bound)
    for newest in range(10, 30):
        file.append([rollout(newest)])
        kept = [each.trace.key.record for each in read_rollouts(tmp_path)]
        assert kept == list(range(newest - len(kept) + 1, newest + 1)), "without a gap, up to the newest"
        assert min(4, newest - 9) <= len(kept) <= 8, "the newest half is always there"
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= bound


def test_a_missing_key_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"rollout\.record_bytes above 0"):
        find_rollout(tmp_path, RequestKey(1))
    RolloutFile(tmp_path, 1 << 20).append([rollout(1), rollout(2, step=3)])
    with pytest.raises(ConfigError, match=r"record=9/.* 2 recorded rollouts \(record=1/.*record=2/.*step 3\)"):
        find_rollout(tmp_path, RequestKey(9))


def test_an_evaluations_answer_is_found_beside_a_rollout_and_by_its_step(tmp_path: Path) -> None:
    RolloutFile(tmp_path, 1 << 20).append([rollout(1)])
    for step in (0, 40):
        append_evaluated(tmp_path, [rollout(1, step=step, epoch=EVALUATION_EPOCH)])

    key = RequestKey(1, EVALUATION_EPOCH)
    assert find_rollout(tmp_path, RequestKey(1)).trace.key.epoch == 0
    assert (find_rollout(tmp_path, key).step, find_rollout(tmp_path, key, step=0).step) == (40, 0)
    with pytest.raises(ConfigError, match=r"epoch=-1/rollout=0 of step 20 is not among its 2 recorded rollouts"):
        find_rollout(tmp_path, key, step=20)


def test_what_arrives_is_of_the_step_that_the_run_is_at_also_after_a_resume(tmp_path: Path) -> None:
    overrides = [f"training.output_dir={tmp_path}", "training.run_name=one", f"model.model={MODEL}"]
    log = RolloutLog(load_config(ROOT / "configs" / "demo.yaml", overrides=overrides))
    (tmp_path / "one").mkdir()
    log.rewind(8)
    log.evaluated(Outcome(key=RequestKey(1, EVALUATION_EPOCH), trace=rollout(1, epoch=EVALUATION_EPOCH).encoded))
    log.evaluated(Outcome(key=RequestKey(2, EVALUATION_EPOCH)))
    log.outcome(Outcome(key=RequestKey(1), trace=rollout(1).encoded))
    log.outcome(Outcome(key=RequestKey(2), failure="ImageError: gone"))
    log.step(9, {})
    log.close()

    assert [each.step for each in read_rollouts(tmp_path / "one", [EVALUATIONS])] == [8]
    assert [each.step for each in read_rollouts(tmp_path / "one")] == [8]


def test_a_run_that_records_nothing_writes_no_files(tmp_path: Path) -> None:
    overrides = [f"training.output_dir={tmp_path}", "training.run_name=one", "rollout.record_bytes=0"]
    log = RolloutLog(load_config(ROOT / "configs" / "demo.yaml", overrides=[*overrides, f"model.model={MODEL}"]))
    (tmp_path / "one").mkdir()
    log.outcome(Outcome(key=RequestKey(1), trace=rollout(1).encoded))
    log.step(1, {})
    log.close()
    assert list((tmp_path / "one").iterdir()) == []


def test_a_line_that_is_being_written_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    RolloutFile(tmp_path, 1 << 20).append([rollout(1)])
    with (tmp_path / NAME).open("a") as file:
        file.write('{"step": 1, "ti')
    assert len(list(read_rollouts(tmp_path))) == 1
    with (tmp_path / NAME).open("a") as file:
        file.write("\n")
    with pytest.raises(ConfigError, match=r"rollouts\.jsonl:2"):
        list(read_rollouts(tmp_path))


def test_a_line_that_holds_no_rollout_is_named(tmp_path: Path) -> None:
    RolloutFile(tmp_path, 1 << 20).append([rollout(1)])
    with (tmp_path / NAME).open("a") as file:
        file.write('{"step": 1, "time": 1.0, "actor": "actor-0", "latency_s": 0.5}\n')
    with pytest.raises(ConfigError, match=rf"{NAME}:2: is no recorded rollout"):
        list(read_rollouts(tmp_path))


def test_what_a_killed_writer_left_half_done_is_cut_off_by_the_next(tmp_path: Path) -> None:
    RolloutFile(tmp_path, 1 << 20).append([rollout(1), rollout(2)])
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole[:-20])
    RolloutFile(tmp_path, 1 << 20).append([rollout(3)])
    assert [each.trace.key.record for each in read_rollouts(tmp_path)] == [1, 3]


def test_a_full_queue_drops_and_counts_and_never_waits(caplog: pytest.LogCaptureFixture) -> None:
    go, done = threading.Event(), []
    writer = BackgroundWriter(max_jobs=1)
    writer.submit("the first", lambda: done.append(go.wait(10)))
    while writer.submit("one more", lambda: done.append(True)):
        pass  # the thread may or may not have taken the first job yet
    assert writer.num_dropped == 1
    assert "dropped one more" in caplog.text
    assert writer.take_counters() == {"dump/dropped": 1.0, "dump/failed": 0.0}
    assert writer.take_counters() == {"dump/dropped": 0.0, "dump/failed": 0.0}
    go.set()
    writer.close()
    assert all(done), "what was queued is written"


def test_a_job_that_fails_is_logged_and_counted_and_the_next_one_runs(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise OSError("disk full")

    done = threading.Event()
    writer = BackgroundWriter()
    writer.submit("a picture", fail)
    writer.submit("the next", done.set)
    writer.close()
    assert done.is_set()
    assert [writer.take_counters()["dump/failed"] for _ in range(2)] == [1.0, 0.0]
    assert "could not write a picture" in caplog.text
    assert "disk full" in caplog.text


def test_closing_gives_a_stuck_job_up_at_its_deadline(caplog: pytest.LogCaptureFixture) -> None:
    begun, forever, done = threading.Event(), threading.Event(), []
    writer = BackgroundWriter(max_jobs=1)

    def stuck() -> None:
        begun.set()
        forever.wait(10)

    writer.submit("a stuck disk", stuck)
    begun.wait(10)
    writer.submit("what waits behind it and leaves no room", lambda: done.append(True))
    for _ in range(2):
        writer.close(timeout_s=0.05)
    assert caplog.text.count("not done after") == 1
    assert writer.num_dropped == 1
    forever.set()
    writer._thread.join(10)
    assert not done, "what was counted as dropped is not written after all"


def test_spans_that_touch_are_one() -> None:
    assert merge_spans([Span(1, 3), Span(0, 2), Span(5, 6), Span(6.01, 7)]) == [Span(0, 3), Span(5, 7)]
    assert merge_spans([]) == []


def test_the_timeline_holds_each_phase_once_and_each_actor_as_long_as_it_worked() -> None:
    now, events = [100.0], []
    timeline = Timeline(lambda kind, **fields: events.append((kind, fields)), clock=lambda: now[0])
    for moment, phase in [(100, "rollout"), (101, "rollout"), (104, "train"), (109, "sync")]:
        now[0] = moment
        timeline.phase(phase)
        if phase == "rollout":
            timeline.answered("actor-0", latency_s=1.0, parse_s=0.0)
    now[0] = 110
    timeline.close()
    spans = [(f["lane"], f["name"], f["start"], f["end"]) for kind, f in events if kind == "span"]
    assert spans[:2] == [("driver", "rollout", 100, 104), ("driver", "train", 104, 109)]
    assert ("actor-0", "generate", 99, 101) in spans
    assert spans[-1] == ("driver", "sync", 109, 110)
    assert next(f["rollouts"] for _, f in events if f["name"] == "generate") == 2


def test_what_the_loop_waits_for_is_told_at_once_and_then_every_few_seconds() -> None:
    now, told = [0.0], []
    timeline = Timeline(
        lambda kind, **fields: told.append(fields["waiting_for"]) if kind == "phase" else None, clock=lambda: now[0]
    )
    for second in range(12):
        now[0] = float(second)
        timeline.phase("rollout" if second < 11 else "train", f"{second}")
    assert told == ["0", "5", "10", "11"]
