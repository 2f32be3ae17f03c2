"""A job on a Ray cluster, seen from outside: its log until it ends, and its stop.

| who waits | for what | who ends the wait | deadline |
|---|---|---|---|
| `follow` | the job's end | the job, by its own deadlines; Ctrl-C | 300 s in which the head answers nothing |
| `stop` | a stopped job's checkpoint | the driver; Ray, which kills it | `RAY_JOB_STOP_WAIT_TIME_S` and a minute |
"""

from __future__ import annotations

import asyncio
import sys
import time

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from protocol.errors import DeadlineError

INTERRUPTED = 130
LOST_S = 300.0
SILENT_S = 120.0
"""Without a word of the log: the job may have nothing to say, or the connection may be dead; its status tells."""
LOST = (RuntimeError, OSError, aiohttp.ClientError, AuthenticationError)
"""What Ray's client raises where the head, or something in front of it, does not answer as it should."""


def follow(client: JobSubmissionClient, job: str) -> int:
    """Prints the job's log until it ends; a connection that breaks meanwhile is made again, where the log was left.

    A broken log says nothing about the head, so the job's status is asked for all the same. Where the job ended behind
    a broken log, the rest of it is asked for once more.
    """
    log, ended = _Log(client, job), False
    while True:
        lost: Exception | None = None
        try:
            asyncio.run(log.tail())
        except LOST as error:
            lost = error
        try:
            if client.get_job_status(job).is_terminal():
                if lost is None or ended:
                    return _exit_code(client, job)
                ended = True
            log.heard = time.monotonic()
        except LOST as error:
            lost = error
            if time.monotonic() - log.heard > LOST_S:
                raise DeadlineError(
                    f"{job}: the cluster has not answered for {LOST_S:.0f} s ({error}); the job may still run: look at "
                    "the head, and follow it with `ray job logs --follow`"
                ) from error
        if lost is not None:
            print(f"rollmatch: lost the connection to {job}, and will look again: {lost}", file=sys.stderr)
        time.sleep(2)


class _Log:
    """A job's log, printed once, however often it is sent from its beginning."""

    def __init__(self, client: JobSubmissionClient, job: str) -> None:
        self.heard = time.monotonic()
        """When the head last said something."""
        self._client, self._job, self._printed = client, job, 0

    async def tail(self) -> None:
        """Returns at the log's end, or when it is silent for SILENT_S; raises what Ray's client does."""
        passed, pieces = 0, self._client.tail_job_logs(self._job)
        while True:
            try:
                text = await asyncio.wait_for(anext(pieces, None), SILENT_S)
            except TimeoutError:
                return
            if text is None:
                return
            self.heard = time.monotonic()
            new = text[max(0, self._printed - passed) :]
            passed += len(text)
            self._printed = max(self._printed, passed)
            print(new, end="", flush=True)


def _exit_code(client: JobSubmissionClient, job: str) -> int:
    info = client.get_job_info(job)
    print(f"rollmatch: {job} {info.status}: {info.message}", file=sys.stderr)
    if info.status == JobStatus.STOPPED:
        return INTERRUPTED
    if info.status == JobStatus.SUCCEEDED:
        return 0
    return info.driver_exit_code or 1


def stop(client: JobSubmissionClient, job: str, grace_s: int) -> int:
    """SIGTERM to the driver, which finishes its window, saves and leaves."""
    print(f"rollmatch: stopping {job}: it finishes its window and writes a checkpoint", file=sys.stderr)
    asked, deadline = False, time.monotonic() + grace_s + 60
    while True:
        try:
            asked = asked or bool(client.stop_job(job))
            if client.get_job_status(job).is_terminal():
                return _exit_code(client, job)
        except LOST as error:
            print(f"rollmatch: lost the connection to {job}, and will ask again: {error}", file=sys.stderr)
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"{job}: did not end within {grace_s + 60} s of being asked to; look at its log, Ray kills it after "
                "RAY_JOB_STOP_WAIT_TIME_S in configs/runtime_env.yaml"
            )
        time.sleep(1)
