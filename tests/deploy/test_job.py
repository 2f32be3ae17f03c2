"""A job's log and its end, over connections that break."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from ray.job_submission import JobStatus

from deploy import job
from protocol.errors import DeadlineError


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
    monkeypatch.setattr(job, "SILENT_S", 0.05)
    monkeypatch.setattr(job.time, "sleep", lambda _: None)


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
        statuses=[running, running, running, done, done],
    )
    assert job.follow(head, "job") == 0  # type: ignore[arg-type]
    assert capsys.readouterr().out == "one\ntwo\nthree\n"


@pytest.mark.usefixtures("impatient")
def test_a_head_that_answers_no_more_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "LOST_S", -1.0)
    with pytest.raises(DeadlineError, match="the job may still run"):
        job.follow(Head([OSError("gone")], statuses=[OSError("gone")]), "job")  # type: ignore[arg-type]


@pytest.mark.usefixtures("impatient")
def test_a_log_that_breaks_is_no_silence_where_the_head_still_tells_the_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(job, "LOST_S", -1.0)
    running, done = JobStatus.RUNNING, JobStatus.SUCCEEDED
    head = Head(*[[OSError("1006")]] * 2, ["the end\n"], statuses=[running, running, done, done])
    assert job.follow(head, "job") == 0  # type: ignore[arg-type]


def test_every_piece_of_the_log_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=lambda _: None)
    monkeypatch.setattr(job, "time", clock)

    class Chatty(Head):
        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            async for piece in super().tail_job_logs(job):
                clock.now += 200.0
                yield piece

    done = JobStatus.SUCCEEDED
    head = Chatty(["1", "2", "3", OSError("1006")], ["123"], statuses=[OSError("502"), done, done])
    assert job.follow(head, "job") == 0  # type: ignore[arg-type]


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(("rest", "printed"), [(["1", "2"], "12"), ([OSError("1006")], "1")])
def test_a_job_that_ended_behind_a_broken_log_is_asked_for_the_rest_once(
    rest: list[Any], printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    head = Head(["1", OSError("1006")], rest, statuses=[JobStatus.FAILED] * 3)
    assert job.follow(head, "job") == 2  # type: ignore[arg-type]
    assert capsys.readouterr().out == printed


@pytest.mark.usefixtures("impatient")
def test_a_stopped_job_is_awaited_through_a_lost_answer() -> None:
    head = Head(statuses=[RuntimeError("502"), JobStatus.RUNNING, JobStatus.STOPPED, JobStatus.STOPPED])
    assert job.stop(head, "job", grace_s=60) == job.INTERRUPTED  # type: ignore[arg-type]
    assert head.stopped == 1


def test_a_status_is_an_answer_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now, sleep=lambda _: None)
    monkeypatch.setattr(job, "time", clock)

    class Slow(Head):
        def get_job_status(self, job: str) -> JobStatus:
            clock.now += 200.0
            return super().get_job_status(job)

    running, done = JobStatus.RUNNING, JobStatus.SUCCEEDED
    head = Slow(*[[OSError("1006")]] * 3, ["the end\n"], statuses=[running, running, OSError("502"), done, done])
    assert job.follow(head, "job") == 0  # type: ignore[arg-type]


def test_a_stopped_job_that_does_not_end_is_asked_once_and_given_up_behind_its_grace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    monkeypatch.setattr(job, "time", clock)
    head = Head(statuses=itertools.repeat(JobStatus.RUNNING))
    with pytest.raises(DeadlineError, match="did not end within 90 s of being asked to"):
        job.stop(head, "job", grace_s=30)  # type: ignore[arg-type]
    assert (head.stopped, clock.now) == (1, pytest.approx(91, abs=1))


def test_a_job_that_failed_without_an_exit_code_failed_nevertheless() -> None:
    ended = SimpleNamespace(status=JobStatus.FAILED, message="", driver_exit_code=None)
    head = SimpleNamespace(get_job_info=lambda _: ended)
    assert job._exit_code(head, "job") == 1  # type: ignore[arg-type]
