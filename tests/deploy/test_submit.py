"""What a job gets, and what it would not find."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
import yaml
from ray.job_submission import JobStatus

from deploy import submit
from deploy.submit import ROOT, RUNTIME_ENV, _client, entrypoint, portability
from protocol.config import RunConfig, load_config
from protocol.errors import ConfigError, DeadlineError

DEMO = ROOT / "configs" / "demo.yaml"
EXCLUDES = yaml.safe_load(RUNTIME_ENV.read_text())["excludes"]


def demo(*overrides: str) -> RunConfig:
    return load_config(DEMO, overrides=list(overrides))


def test_a_job_joins_the_cluster_it_runs_in_unless_the_file_names_one() -> None:
    assert entrypoint(demo(), DEMO, None, ["training.max_steps=2"]).endswith(
        "training.max_steps=2 cluster.address=auto"
    )
    assert "cluster.address" not in entrypoint(demo("cluster.address=auto"), DEMO, None, [])


def test_paths_are_those_of_the_working_directory_and_words_are_quoted() -> None:
    command = entrypoint(demo(), DEMO, None, ["custom.user_prompt=List every object."])
    assert command.startswith("python -m deploy.cli train --config configs/demo.yaml 'custom.user_prompt=List every")


def test_an_address_without_a_scheme_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="--address: head:8265 is no URL"):
        _client("head:8265")


def test_a_run_file_outside_the_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="outside"):
        entrypoint(demo(), tmp_path / "my.yaml", None, [])


def test_relative_paths_that_are_not_uploaded_are_named() -> None:
    found = portability(demo(), EXCLUDES)
    data = ["custom.train_jsonl", "custom.val_jsonl", "training.output_dir"]
    assert [line.split(":")[0] for line in found] == data
    assert portability(demo("model.model=data/my/model"), EXCLUDES)[0].startswith("model.model: ")
    fine = demo("custom.train_jsonl=/d/t.jsonl", "custom.val_jsonl=/d/v.jsonl", "training.output_dir=/runs")
    assert portability(fine, EXCLUDES) == [], "the demo's model is part of the checkout"


@pytest.mark.parametrize(
    ("override", "name"),
    [
        ("custom.train_jsonl=../main.jsonl", "custom.train_jsonl"),
        (f"model.model=../{ROOT.name}/../{ROOT.name}/data/model", "model.model"),
        ("custom.system_prompt=data/prompt.txt", "custom.system_prompt"),
        ("training.resume=runs/x/checkpoint-100", "training.resume"),
        ("training.logging_dir=tb", "training.logging_dir"),
    ],
)
def test_whatever_names_a_file_is_looked_at(override: str, name: str) -> None:
    fine = ("custom.train_jsonl=/d/t.jsonl", "custom.val_jsonl=/d/v.jsonl", "training.output_dir=/runs")
    assert [line.split(":")[0] for line in portability(demo(*fine, override), EXCLUDES)] == [name]


class Head:
    """A head that answers as it is told to: pieces of the log for each tail, or what the connection raises."""

    def __init__(self, *tails: Any, statuses: Any) -> None:
        self._tails, self._statuses = iter(tails), iter(statuses)
        self.stopped = 0

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        for piece in next(self._tails):
            if isinstance(piece, Exception):
                raise piece
            if piece is None:
                await asyncio.sleep(30)
            yield piece

    def get_job_status(self, job: str) -> JobStatus:
        status = next(self._statuses)
        if isinstance(status, Exception):
            raise status
        return status

    def stop_job(self, job: str) -> bool:
        self.stopped += 1
        return True

    def get_job_info(self, job: str) -> Any:
        return SimpleNamespace(status=self.get_job_status(job), message="", driver_exit_code=2)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "SILENT_S", 0.05)
    monkeypatch.setattr(submit.time, "sleep", lambda _: None)


@pytest.mark.usefixtures("impatient")
def test_a_broken_or_silent_connection_is_made_again_where_the_log_was_left(
    capsys: pytest.CaptureFixture[str],
) -> None:
    running, done = JobStatus.RUNNING, JobStatus.SUCCEEDED
    head = Head(
        ["one\n", aiohttp.ServerDisconnectedError()],
        ["one\ntwo\n", None],
        [RuntimeError("502")],
        ["one\n", "two\nthree\n"],
        statuses=[running, done, done],
    )
    assert submit._follow(head, "job") == 0  # type: ignore[arg-type]
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


@pytest.mark.usefixtures("impatient")
def test_a_head_that_answers_no_more_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submit, "LOST_S", -1.0)
    with pytest.raises(DeadlineError, match="the job may still run"):
        submit._follow(Head([OSError("gone")], statuses=[]), "job")  # type: ignore[arg-type]


@pytest.mark.usefixtures("impatient")
def test_a_stopped_job_is_awaited_through_a_lost_answer() -> None:
    head = Head(statuses=[RuntimeError("502"), JobStatus.RUNNING, JobStatus.STOPPED, JobStatus.STOPPED])
    assert submit._stop(head, "job", grace_s=60) == submit.INTERRUPTED  # type: ignore[arg-type]
    assert head.stopped == 1


def test_ctrl_d_at_the_question_leaves_the_job_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def end_of_file(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", end_of_file)
    assert submit._wants_stop("ask") is False


def test_data_runs_and_environment_are_not_uploaded() -> None:
    assert {"/data", "/runs", "/.git", "/.venv"} <= set(EXCLUDES)
