"""`rollmatch evaluate`: what is asked of whom, what is kept, and what is refused before anything starts."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import pytest

from actors.outcome import Outcome
from deploy import evaluation
from deploy.cli import main
from deploy.cluster import EVALUATION_LOGS, KEPT_LOGS
from deploy.demo.scenes import write_scenes
from deploy.recorder import EVALUATIONS, read_rollouts
from protocol.config import RunConfig
from protocol.contracts import RolloutRequest
from protocol.errors import InfrastructureFailure
from protocol.serialization import assistant_text
from protocol.unread import UnreadRequest
from tests.deploy.rollouts import MODEL, ROOT, trace_of


class Pool:
    """Finds the first object of each image."""

    num_restarts = 0

    def __init__(self) -> None:
        self.open: list[RolloutRequest] = []

    def start(self) -> None: ...

    def serve_start_checkpoint(self) -> None: ...

    def close(self) -> None: ...

    def submit(self, requests: Sequence[UnreadRequest]) -> None:
        self.open += [request.read() for request in requests]

    def poll(self) -> list[tuple[Outcome, Any]]:
        request, record = self.open[0], self.open.pop(0).record
        text = assistant_text(record.objects[:1])
        trace = trace_of(record.index, text, truths=record.objects, image=record.images[0], epoch=request.key.epoch)
        outcome = Outcome(key=request.key, evaluated=trace.stats, trace=trace.encode() if request.traced else None)
        return [(outcome, None)]


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    @contextlib.contextmanager
    def nothing(*_: Any, **__: Any) -> Iterator[None]:
        yield

    monkeypatch.setattr(evaluation, "ray_session", nothing)
    monkeypatch.setattr(evaluation, "reserve", nothing)
    monkeypatch.setattr(evaluation, "new_pool", lambda *_: Pool())
    monkeypatch.chdir(ROOT)
    write_scenes(tmp_path / "data", "val", 3, seed=1)
    data = tmp_path / "data" / "val.jsonl"
    overrides = [f"custom.train_jsonl={data}", f"custom.val_jsonl={data}", f"model.model={MODEL}"]
    return ["evaluate", "--config", "configs/demo.yaml", *overrides, f"training.output_dir={tmp_path / 'runs'}"]


def test_the_answers_are_kept_in_a_folder_that_report_and_replay_read(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main([*words, "--output", str(out)]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert metrics["eval_rollout_samples"] == 3
    assert len(list(read_rollouts(out, [EVALUATIONS]))) == 3

    assert main(["report", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert f"{metrics['eval_rollout_f1']:.3f} → {metrics['eval_rollout_f1']:.3f}" in page
    assert "of the evaluated answers" in page
    assert "No optimizer step yet" not in page
    assert '<span class="badge good">not trained</span>' in page
    capsys.readouterr()
    assert main(["watch", "--once", str(out)]) == 0
    assert "No optimizer step yet" not in capsys.readouterr().out
    assert main(["replay", "--run", str(out), "--key", "record=2/epoch=-1"]) == 0
    assert "record=2/epoch=-1" in capsys.readouterr().out


def test_without_a_folder_nothing_is_written_and_no_trace_is_asked_for(words: list[str], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert main(words) == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_holds_something_is_refused_before_anything_starts(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "ray_session", lambda *_: pytest.fail("nothing is started"))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    assert main([*words, "-o", str(tmp_path / "out")]) == 2
    assert "--output: " in capsys.readouterr().err
    assert main([*words, "-o", str(tmp_path / "other"), "rollout.record_bytes=0"]) == 2
    assert "rollout.record_bytes: is 0" in capsys.readouterr().err


def test_a_failed_evaluation_leaves_the_logs_of_the_run_alone(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Path] = []

    def failing(config: RunConfig, logs: Path) -> NoReturn:
        kept.append(logs)
        raise InfrastructureFailure("no room")

    monkeypatch.setattr(evaluation, "ray_session", failing)
    assert main(words) == 1
    assert main([*words, "-o", str(tmp_path / "out")]) == 1
    assert kept == [tmp_path / "runs" / "demo" / EVALUATION_LOGS, tmp_path / "out" / EVALUATION_LOGS]
    assert EVALUATION_LOGS != KEPT_LOGS


def test_an_evaluation_needs_no_room_for_learner_ranks(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.check._num_gpus", lambda: 0)
    assert main([*words, "cluster.gpus_per_learner=1"]) == 0
