"""What the observer makes of the loop's events."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NoReturn

import pytest

from actors.loop import LoopState
from actors.outcome import Outcome
from deploy.checkpoints import CheckpointKeeper, ResumePoint, begin_run
from deploy.exporter import OTHER, QUARANTINE_REASONS
from deploy.observer import RunObserver
from deploy.quarantine import ADVICE
from deploy.step_metrics import OVERSIZE
from protocol.config import RunConfig
from protocol.config.explain import all_paths
from protocol.contracts import RequestKey
from protocol.errors import ConfigError, DataFailure, LearnerError
from tests.deploy.test_checkpoints import FolderLearner, config


def small(folder: Path, **sections: Any) -> RunConfig:
    base = config(folder, report_to=["none"])
    return base.model_copy(
        update={name: getattr(base, name).model_copy(update=values) for name, values in sections.items()}
    )


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def failed(record: int, reason: str = "ImageError: gone", epoch: int = 0) -> Outcome:
    return Outcome(key=RequestKey(record, epoch), failure=reason)


def test_a_record_is_quarantined_once_also_after_a_resume(tmp_path: Path) -> None:
    run_config = small(tmp_path, quarantine={"max_records": 2})
    for fresh in (True, False):
        with RunObserver(run_config, 10) as observer:
            new = [observer.quarantine(failed(record)) for record in (1, 2, 1)]
            assert new == [fresh, fresh, False]
    assert [line["key"] for line in lines(run_config.run_dir / "quarantine.jsonl")] == [
        str(RequestKey(1)),
        str(RequestKey(2)),
    ]
    with RunObserver(run_config, 10) as observer, pytest.raises(DataFailure, match="3 records are quarantined"):
        observer.quarantine(failed(3))


def test_a_record_that_fails_in_every_epoch_counts_once_also_after_a_resume(tmp_path: Path) -> None:
    run_config = small(tmp_path, quarantine={"max_records": 2}, metrics={"enabled": True, "port": 0})
    for epochs in (range(5), range(5, 10)):
        with RunObserver(run_config, 10) as observer:
            new = [observer.quarantine(failed(record, epoch=epoch)) for epoch in epochs for record in (1, 2)]
            assert sum(new) == (2 if epochs[0] == 0 else 0)
            page = observer._live.render().decode() if observer._live is not None else ""
            assert f'records_total{{reason="ImageError",run="r"}} {sum(new)}.0' in page
    assert len(lines(run_config.run_dir / "quarantine.jsonl")) == 20
    with RunObserver(run_config, 10) as observer, pytest.raises(DataFailure, match="3 records are quarantined"):
        observer.quarantine(failed(3))


def test_too_many_records_end_the_run_with_their_reasons_and_what_to_change_for_most(tmp_path: Path) -> None:
    reasons = [f"{OVERSIZE}: t.jsonl:{line}: encoded 30 tokens" for line in (1, 2)] + ["ImageError: gone"]
    with RunObserver(small(tmp_path, quarantine={"max_records": 2}), 10) as observer:
        for record, reason in enumerate(reasons[:2]):
            observer.quarantine(failed(record, reason))
        with pytest.raises(DataFailure) as ended:
            observer.quarantine(failed(2, reasons[2]))
    assert ": 2 x Oversize, 1 x ImageError; raise global_max_length, or lower " in str(ended.value)
    assert "quarantine.jsonl" in str(ended.value)
    with RunObserver(small(tmp_path / "b", quarantine={"max_records": 1}), 10) as observer:
        observer.quarantine(failed(0, reasons[0]))
        with pytest.raises(DataFailure, match=r"1 x Oversize, 1 x ImageError; mend the data; raise the limit too"):
            observer.quarantine(failed(2, reasons[2]))


def test_a_run_that_its_quarantine_ended_resumes_under_a_higher_limit_as_it_said(tmp_path: Path) -> None:
    run_config = small(tmp_path, quarantine={"max_records": 1})
    with RunObserver(run_config, 10) as observer:
        observer.quarantine(failed(1))
        with pytest.raises(DataFailure, match="raise the limit too, since a resume counts on from these"):
            observer.quarantine(failed(2))
    CheckpointKeeper(run_config, FolderLearner(), 100).snapshot(LoopState(), position=0)()
    for limit in (1, 3):
        resumed = small(tmp_path, quarantine={"max_records": limit}, training={"resume": "auto"})
        begin_run(resumed, 100)
        if limit == 1:
            with pytest.raises(ConfigError, match=r"^quarantine\.max_records: 2 records are quarantined"):
                RunObserver(resumed, 10)
            continue
        with RunObserver(resumed, 10) as observer:
            assert not observer.quarantine(failed(2)), "it is asked for again, and known"
            assert observer.quarantine(failed(3))


def test_a_resume_counts_the_record_that_ended_the_run_also_where_a_learner_fails_behind_it(tmp_path: Path) -> None:
    run_config = small(tmp_path, quarantine={"max_records": 1})
    with RunObserver(run_config, 10) as observer:
        counted = int(observer.quarantine(failed(1)))
        with pytest.raises(DataFailure):
            observer.quarantine(failed(2))
    CheckpointKeeper(run_config, FolderLearner(), 100).snapshot(LoopState(quarantined=counted), position=0)()

    resumed = small(tmp_path, quarantine={"max_records": 5}, training={"resume": "auto"})
    point = begin_run(resumed, 100)
    assert point is not None
    with RunObserver(resumed, 10) as observer:
        observer.resumed(point)
        assert point.state.quarantined == 2
        again = ResumePoint.read(point.path)
        observer.restarted(again, LearnerError("rank 1 died"))
        assert again.state.quarantined == 2
        assert not observer.quarantine(failed(2)), "it is asked for again, and known"


def test_every_reason_has_an_advice_that_names_settings_that_exist() -> None:
    written = [
        "RecordError",
        "ImageError",
        "PromptTooLongError",
        "Oversize",
        "Placeholder",
        "AnswerError",
        "EngineKilled",
    ]
    assert [*written, OTHER] == list(QUARANTINE_REASONS)
    named = re.findall(r"\b(?:custom\.[a-z0-9_.]+|global_max_length)\b", " ".join(ADVICE.values()))
    assert len(named) == 3
    assert set(named) <= set(all_paths(RunConfig))


def test_a_target_that_is_too_long_ends_the_run_where_the_settings_say_so(tmp_path: Path) -> None:
    too_long = failed(1, f"{OVERSIZE}: t.jsonl:2: encoded 30 tokens, limit 20; raise global_max_length")
    with RunObserver(small(tmp_path), 10) as observer:
        observer.quarantine(too_long)
    with RunObserver(small(tmp_path / "b", template={"truncation_strategy": "raise"}), 10) as observer:
        observer.quarantine(failed(7))
        for _ in range(2):  # a resume asks for it again
            with pytest.raises(DataFailure, match=r"tokens, limit 20; .*template\.truncation_strategy: delete"):
                observer.quarantine(too_long)


def test_a_restart_is_an_event_a_counter_and_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_config = small(tmp_path)
    point = ResumePoint(Path("checkpoint-4"), LoopState(step=4), 0, {}, {})
    with RunObserver(run_config, 10) as observer:
        observer.restarted(point, LearnerError("rank 1 died"))
    assert "the learner failed, the run goes back to step 4 (checkpoint-4): rank 1 died" in caplog.text
    (event,) = (line for line in lines(run_config.run_dir / "events.jsonl") if line["kind"] == "restart")
    assert (event["step"], event["cause"]) == (4, "rank 1 died")
    assert observer._progress._step == 4
    (metrics,) = lines(run_config.run_dir / "metrics.jsonl")
    assert (metrics["step"], metrics["train/restarts"]) == (4, 1)


def test_evaluations_are_records_of_their_own_and_a_save_writes_what_was_gathered(tmp_path: Path) -> None:
    run_config = small(tmp_path, training={"logging_steps": 10, "logging_first_step": False})
    with RunObserver(run_config, 10) as observer:
        observer.step(0, {"eval_rollout_f1": 0.5})
        for step in (1, 2):
            observer.step(step, {"loss/total": 1.0})
        observer.phase("save", "the checkpoint of step 2")
        assert [line["step"] for line in lines(run_config.run_dir / "metrics.jsonl")] == [0, 2]


def test_what_cannot_be_closed_does_not_keep_the_rest_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> NoReturn:
        raise OSError(28, "No space left on device")

    observer = RunObserver(small(tmp_path), 10)
    monkeypatch.setattr(observer._timeline, "close", full)
    with pytest.raises(OSError, match="No space left"), observer:
        pass
    assert observer._ledger._file.closed
    assert observer._tracker._metrics.closed
