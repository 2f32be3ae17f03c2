"""What a job gets, and what it would not find."""

from __future__ import annotations

import argparse
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
import yaml

from deploy import submit
from deploy.run_paths import DESC_ENCODER, MATCHING, read_paths, written_paths
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
    based = entrypoint(demo(), DEMO, ROOT / "configs" / "bccd.yaml", [])
    assert " --config configs/demo.yaml --base_config configs/bccd.yaml " in based


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


def test_a_model_on_a_hub_needs_no_file_and_one_in_a_folder_does() -> None:
    fine = ("custom.train_jsonl=/d/t.jsonl", "custom.val_jsonl=/d/v.jsonl", "training.output_dir=/runs")
    assert portability(demo(*fine, "model.model=owner/model"), EXCLUDES) == []
    for path in ("./model", "owner/folder/model", "model"):
        (line,) = portability(demo(*fine, f"model.model={path}"), EXCLUDES)
        assert line.startswith(f"model.model: {path} is relative")
    (line,) = portability(demo(*fine, "custom.train_jsonl=data/t.jsonl"), EXCLUDES)
    assert line.startswith("custom.train_jsonl: "), "only a model has such a name"


def test_what_a_run_does_not_use_is_none_of_its_paths() -> None:
    def encoder(*settings: str) -> str | None:
        named = f"{DESC_ENCODER}=data/encoder"
        return read_paths(demo(named, *(f"{MATCHING}.desc_monitor.{each}" for each in settings))).get(DESC_ENCODER)

    assert encoder("enabled=true", "mode=both") == "data/encoder"
    assert encoder("enabled=true", "mode=exact") is None
    assert encoder("enabled=false", "mode=both") is None
    folder = f"{MATCHING}.monitor_dump.out_dir"
    for enabled in ("true", "false"):
        found = written_paths(demo(f"{folder}=dumps", f"{MATCHING}.monitor_dump.enabled={enabled}"))
        assert found.get(folder) == ("dumps" if enabled == "true" else None)
    zero = demo().model_copy(update={"deepspeed": SimpleNamespace(config={"zero_optimization": {"stage": 2}})})
    assert "deepspeed.config" not in read_paths(zero)


def test_ctrl_d_at_the_question_leaves_the_job_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)

    def end_of_file(_: str) -> str:
        raise EOFError

    monkeypatch.setattr("builtins.input", end_of_file)
    assert submit._wants_stop("ask") is False


@pytest.mark.parametrize(
    ("choice", "is_terminal", "answer", "stops"),
    [
        ("stop", True, "d", True),
        ("detach", True, "s", False),
        ("ask", False, "s", False),
        ("ask", True, " Stop", True),
        ("ask", True, "d", False),
    ],
)
def test_a_job_is_stopped_where_that_was_chosen(
    monkeypatch: pytest.MonkeyPatch, choice: str, is_terminal: bool, answer: str, stops: bool
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: is_terminal))
    monkeypatch.setattr("builtins.input", lambda _: answer)
    assert submit._wants_stop(choice) is stops


@pytest.mark.parametrize(
    ("more", "code", "calls"),
    [
        ({"no_wait": True}, 0, []),
        ({}, 0, ["follow"]),
        ({"on_interrupt": "stop"}, 130, ["follow", "stop 900"]),
    ],
)
def test_a_job_is_followed_and_left_running_or_stopped_at_ctrl_c(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: dict[str, Any],
    code: int,
    calls: list[str],
) -> None:
    made: list[str] = []
    commands: list[str] = []

    def follow(client: object, job: str) -> int:
        made.append("follow")
        raise KeyboardInterrupt

    def stop(client: object, job: str, grace_s: int) -> int:
        made.append(f"stop {grace_s}")
        return 130

    head = SimpleNamespace(submit_job=lambda *, entrypoint, **_: commands.append(entrypoint))
    monkeypatch.setattr(submit, "_client", lambda _: head)
    monkeypatch.setattr(submit, "follow", follow)
    monkeypatch.setattr(submit, "stop", stop)
    arguments = {"config": DEMO, "base_config": None, "overrides": [], "debug": True, "no_wait": False}
    arguments |= {"address": "http://head:8265", "on_interrupt": "detach"}
    fine = ("custom.train_jsonl=/d/t.jsonl", "custom.val_jsonl=/d/v.jsonl", "training.output_dir=/runs")
    assert submit.submit(demo(*fine), argparse.Namespace(**arguments | more)) == code
    assert made == calls
    assert " debug.enabled=true " in commands[0]
    printed = capsys.readouterr()
    assert printed.out.startswith("rollmatch-demo-") is bool(more.get("no_wait"))
    assert ("ray job logs --address http://head:8265 --follow rollmatch-demo-" in printed.err) is (calls == ["follow"])


def test_data_runs_and_environment_are_not_uploaded() -> None:
    assert {"/data", "/runs", "/.git", "/.venv"} <= set(EXCLUDES)


def test_a_slow_uplink_has_the_time_that_its_package_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over plain http the first limit is that of sending the whole body: 60 s would cut 20 MB at 2 Mbit/s."""
    limits: list[Any] = []

    def answered(*_: Any, timeout: Any, **__: Any) -> requests.Response:
        limits.append(timeout)
        return requests.Response()

    monkeypatch.setattr("requests.request", answered)
    client = submit._Client.__new__(submit._Client)
    client._address, client._cookies, client._headers, client._verify = "http://head:8265", None, {}, True
    client._do_request("PUT", "/api/packages/gcs/x", data=bytes(20_000_000))
    assert isinstance(client._do_request("GET", "/api/jobs/"), requests.Response)
    assert limits[0][0] > 20_000_000 * 8 / 2e6
    assert limits[1] == (submit.REQUEST_S, submit.REQUEST_S)
    assert limits[0][1] == submit.REQUEST_S, "what the head does with it has no longer"


class Head:
    """Its uplink takes 200 s for the package, once; its agent for jobs starts when `ready_at` has come."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ready_at: float) -> None:
        self.now, self._ready_at, self._uploaded = 0.0, ready_at, False
        monkeypatch.setattr(submit, "time", SimpleNamespace(monotonic=lambda: self.now, sleep=self._pass))

    def _pass(self, seconds: float) -> None:
        self.now += seconds

    def submit_job(self, **_: Any) -> None:
        self.now += 0.0 if self._uploaded else 200.0
        self._uploaded = True
        if self.now < self._ready_at:
            raise RuntimeError("No available agent to submit job, please try again later.")


def test_the_time_of_a_slow_upload_is_not_taken_from_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    head = Head(monkeypatch, ready_at=300)
    assert submit._accepted(head, "true", {}, "demo").startswith("rollmatch-demo-")
    head = Head(monkeypatch, ready_at=1_000)
    with pytest.raises(DeadlineError, match="did not accept the job within 120 s: No available agent"):
        submit._accepted(head, "true", {}, "demo")
    assert 320 <= head.now <= 330


def test_a_job_whose_acceptance_was_lost_is_asked_for_under_its_name_and_is_no_second_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[dict[str, Any]] = []

    def submit_job(**job: Any) -> None:
        asked.append(job)
        raise OSError("reset") if len(asked) == 1 else RuntimeError(f"{job['submission_id']} already exists")

    monkeypatch.setattr(submit.time, "sleep", lambda _: None)
    name = submit._accepted(SimpleNamespace(submit_job=submit_job), "true", {"env_vars": {}}, "demo")  # type: ignore[arg-type]
    job = {"entrypoint": "true", "runtime_env": {"env_vars": {}}, "submission_id": name, "metadata": {"run": "demo"}}
    assert asked == [job, job]
