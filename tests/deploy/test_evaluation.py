"""`rollmatch evaluate`: what is asked of whom, what is kept, and what is refused before anything starts."""

from __future__ import annotations

import contextlib
import json
import signal
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
    out.mkdir()
    assert main([*words, "--output", str(out)]) == 0
    kept = {"config.yaml", "environment.json", EVALUATIONS, "events.jsonl", "metrics.jsonl", "summary.json"}
    assert {path.name for path in out.iterdir()} == kept
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


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            "custom.val_jsonl=null training.eval_steps=null",
            "custom.val_jsonl: is missing, and there is nothing to evaluate on",
        ),
        ("custom.extra.rollout_matching.vllm.load_format=dummy", "vllm.load_format: is dummy"),
        ("model.model=./gone", "model.model: gone is no folder"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_anything_starts(
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    overrides: str,
    told: str,
) -> None:
    monkeypatch.setattr(evaluation, "ray_session", lambda *_: pytest.fail("something was started"))
    assert main([*words, *overrides.split()]) == 2
    assert told in capsys.readouterr().err


def test_engines_serve_the_start_checkpoint_and_are_closed_however_it_ends(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    handlers = {signal.getsignal(signal.SIGTERM)}

    class Told(Pool):
        def start(self) -> None:
            said.append("start")
            handlers.add(signal.getsignal(signal.SIGTERM))

        def serve_start_checkpoint(self) -> None:
            said.append("serve")

        def submit(self, requests: Sequence[UnreadRequest]) -> None:
            said.append("submit")
            raise InfrastructureFailure("too few engines")

        def close(self) -> None:
            said.append("close")

    monkeypatch.setattr(evaluation, "new_pool", lambda *_: Told())
    assert main(words) == 1
    assert said == ["start", "serve", "submit", "close"]
    assert len(handlers) == 2, "a signal closes them too"
    assert signal.getsignal(signal.SIGTERM) in handlers


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
    reserved: list[bool] = []

    @contextlib.contextmanager
    def reserve(config: RunConfig, *, learners: bool) -> Iterator[None]:
        reserved.append(learners)
        yield

    monkeypatch.setattr("deploy.check._num_gpus", lambda: 0)
    monkeypatch.setattr(evaluation, "reserve", reserve)
    assert main([*words, "cluster.gpus_per_learner=1"]) == 0
    assert reserved == [False]
