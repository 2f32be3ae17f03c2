"""One observer, several places: what the loop says is in the files, on the endpoint and in the run's folder."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from actors.buffer import SegmentBuffer
from actors.outcome import Outcome
from actors.request_queue import RequestQueue
from actors.status import ActorStatus
from deploy import cli
from deploy.observer import RunObserver
from protocol.config import RunConfig, load_config
from protocol.contracts import RequestKey
from protocol.errors import LearnerError
from protocol.segments import SegmentMeta, SegmentStats

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., RunConfig]:
    def load(*more: str) -> RunConfig:
        base = [f"training.output_dir={tmp_path}", "training.run_name=run", "training.report_to=none"]
        found = load_config(ROOT / "configs" / "demo.yaml", overrides=[*base, *more])
        found.run_dir.mkdir(exist_ok=True)
        return found

    return load


def get(config: RunConfig, path: str) -> tuple[int, str]:
    address = (config.run_dir / "metrics_address").read_text().strip()
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def meta(record: int) -> SegmentMeta:
    return SegmentMeta(
        key=RequestKey(record),
        length=10,
        num_bytes=40,
        first_version=0,
        last_version=0,
        stats=SegmentStats(),
    )


def pool() -> Any:
    actor = ActorStatus(
        name="actor-0",
        state="synced",
        version=0,
        num_owed=3,
        num_running=2,
        restarts={},
        given_up=False,
        pid=1,
        idle_s=0.0,
    )
    queue = RequestQueue(max_in_flight=8, max_retries=1)
    waiting: Any = [SimpleNamespace(key=RequestKey(number)) for number in range(7)]
    queue.submit(waiting)
    return SimpleNamespace(status=lambda: [actor], queue=queue)


def test_a_run_is_ready_with_its_first_version_and_shows_what_it_waits_for(config: Callable[..., RunConfig]) -> None:
    run = config()
    with RunObserver(run, total_steps=9) as observer:
        assert get(run, "/readyz") == (503, "not ready: the first version is not served yet; start, waiting for Ray\n")
        observer.event("publish", version=0, checksums=[], engines=[])
        observer.phase("rollout", "12 of 32 segments")
        assert get(run, "/readyz")[0] == 200
        assert get(run, "/healthz") == (200, "last progress 0 s ago; rollout, waiting for 12 of 32 segments\n")


def test_a_run_whose_learner_failed_is_not_ready_until_its_engines_serve_again(
    config: Callable[..., RunConfig],
) -> None:
    run = config()
    with RunObserver(run, total_steps=9) as observer:
        observer.event("publish", version=0, checksums=[], engines=[])
        observer.restarted(None, LearnerError("rank 1 died"))
        assert get(run, "/readyz")[0] == 503
        assert 'rollmatch_run_ready{run="run"} 0.0' in get(run, "/metrics")[1]
        observer.event("publish", version=0, checksums=[], engines=[])
        assert get(run, "/readyz")[0] == 200


def test_what_the_loop_says_is_on_the_endpoint_and_in_the_files(config: Callable[..., RunConfig]) -> None:
    run = config()
    buffer = SegmentBuffer(10**6, 100)
    buffer.put(meta(1), "ref", order=0)
    with RunObserver(run, total_steps=9) as observer:
        observer.watch(pool(), buffer)
        observer.phase("rollout", "1 of 1 segments")
        observer.outcome(Outcome(key=RequestKey(1), meta=meta(1), new_tokens=5, finish_reason="stop", latency_s=0.2))
        observer.event("publish", version=1, checksums=[], engines=[])
        observer.step(1, {"rollout/f1": 0.5, "rollout/segments": 4.0})
        shown = get(run, "/metrics")[1].splitlines()

    (logged,) = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert (logged["step"], logged["rollout/f1"], logged["rollout/running"]) == (1, 0.5, 3)
    for line in (
        'rollmatch_rollout_f1{run="run"} 0.5',
        'rollmatch_run_step{run="run"} 1.0',
        'rollmatch_run_max_steps{run="run"} 9.0',
        'rollmatch_rollout_outcomes_total{reason="stop",run="run"} 1.0',
        'rollmatch_actor_staleness{actor="actor-0",run="run"} 1.0',
        'rollmatch_queue_requests{run="run"} 7.0',
        'rollmatch_buffer_segments{run="run"} 1.0',
        'rollmatch_limit_staleness{run="run"} 0.0',
        'rollmatch_run_phase{phase="rollout",run="run"} 1.0',
    ):
        assert line in shown


def test_without_the_endpoint_the_files_are_written_all_the_same(config: Callable[..., RunConfig]) -> None:
    run = config("metrics.enabled=false")
    with RunObserver(run, total_steps=9) as observer:
        observer.step(1, {"rollout/f1": 0.5})
    assert (run.run_dir / "metrics.jsonl").read_text().count("\n") == 1
    assert not (run.run_dir / "metrics_address").exists()


def test_a_port_that_is_taken_ends_the_command_with_the_settings_path(
    config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        run = config(f"metrics.port={taken.getsockname()[1]}")
        monkeypatch.setattr(cli, "_train", lambda _: RunObserver(run, 9))
        assert cli.main(["train", "--config", "x"]) == cli.WRONG_INPUT
    assert "rollmatch: metrics.port: cannot listen on 127.0.0.1:" in capsys.readouterr().err
