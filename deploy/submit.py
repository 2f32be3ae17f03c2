"""`rollmatch submit`: a run as a job on a Ray cluster that exists.

The checkout is uploaded as the job's working directory, without data, runs and `.venv` (configs/runtime_env.yaml); the
job runs `python -m deploy.cli train` on the head. Its log is followed until it ends, and its exit code is this one's.
The token is where Ray looks for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

| who waits | for what | who ends the wait | deadline |
|---|---|---|---|
| `_accepted` | the head's job agent | the head | 120 s |
| `_follow` | the job's end | the job, by its own deadlines; Ctrl-C | 300 s in which the head answers nothing |
| `_stop` | a stopped job's checkpoint | the driver; Ray, which kills it | `RAY_JOB_STOP_WAIT_TIME_S` and a minute |
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from deploy.run_paths import on_a_hub, read_paths, written_paths
from protocol.config import RunConfig
from protocol.errors import ConfigError, DeadlineError

ROOT = Path(__file__).resolve().parent.parent
RUNTIME_ENV = ROOT / "configs" / "runtime_env.yaml"
INTERRUPTED = 130
ACCEPT_S, LOST_S = 120.0, 300.0
SILENT_S = 120.0
"""Without a word of the log: the job may have nothing to say, or the connection may be dead; its status tells."""
REQUEST_S = 60.0
LOST = (RuntimeError, OSError, aiohttp.ClientError, AuthenticationError)
"""What Ray's client raises where the head, or something in front of it, does not answer as it should."""
TOKEN_HELP = (
    "the cluster's token belongs into RAY_AUTH_TOKEN or ~/.ray/auth_token, with RAY_AUTH_MODE=token; on the head, "
    "`ray get-auth-token` prints it"
)


class _Client(JobSubmissionClient):  # type: ignore[misc]
    """Every request has a deadline, which Ray's own client does not give it."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=REQUEST_S, **options)


def submit(config: RunConfig, arguments: argparse.Namespace) -> int:
    """Submits and follows; the exit code of the job's command, 130 when it was stopped.

    Raises:
        ConfigError: the run cannot work as a job, or the cluster does not answer; nothing was submitted.
        DeadlineError: a stopped job did not end.
    """
    runtime_env: dict[str, Any] = yaml.safe_load(RUNTIME_ENV.read_text())
    problems = list(portability(config, runtime_env["excludes"]))
    if problems:
        several = f"{len(problems)} things are wrong\n" + "\n".join(problems)
        raise ConfigError(problems[0] if len(problems) == 1 else several)
    overrides = [*arguments.overrides, *(["debug.enabled=true"] if arguments.debug else [])]
    command = entrypoint(config, arguments.config, arguments.base_config, overrides)
    client = _client(arguments.address)
    job = _accepted(client, command, runtime_env | {"working_dir": str(ROOT)}, config.run_dir.name)
    print(f"rollmatch: submitted {job}: {command}", file=sys.stderr)
    if arguments.no_wait:
        print(job)
        return 0
    grace = int(runtime_env["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"])
    try:
        return _follow(client, job)
    except KeyboardInterrupt:
        if _wants_stop(arguments.on_interrupt):
            return _stop(client, job, grace)
    address = shlex.quote(arguments.address)
    print(f"rollmatch: left {job} running; ray job logs --address {address} --follow {job}", file=sys.stderr)
    return 0


def entrypoint(config: RunConfig, file: Path, base: Path | None, overrides: Sequence[str]) -> str:
    """The job's command line, with paths as they are in its working directory."""
    words = ["python", "-m", "deploy.cli", "train", "--config", _inside(file)]
    words += ["--base_config", _inside(base)] if base else []
    words += overrides
    if config.cluster.address is None:
        words.append("cluster.address=auto")  # or the job would start a cluster of its own on the head
    return shlex.join(words)


def _inside(path: Path) -> str:
    absolute = path.resolve()
    if not absolute.is_relative_to(ROOT):
        raise ConfigError(f"--config: {path} is outside {ROOT}, which is what the job gets; put it into configs/")
    return str(absolute.relative_to(ROOT))


def portability(config: RunConfig, excludes: Sequence[str]) -> list[str]:
    """Why the run's paths would not be found by a job, one line each.

    A job's working directory is a temporary copy of the checkout: a relative path works only for what is uploaded, and
    what is written there is lost.
    """
    found = [
        f"{name}: {path} is relative and is not uploaded with the job; write an absolute path on storage that every "
        "node sees"
        for name, path in read_paths(config).items()
        if not (Path(path).is_absolute() or _is_uploaded(path, excludes))
        if (ROOT / path).exists() or not on_a_hub(name, path)
    ]
    return found + [
        f"{name}: {path} is relative, and a job's working directory is temporary: what is written there would be lost; "
        "write an absolute path on storage that every node sees"
        for name, path in written_paths(config).items()
        if not Path(path).is_absolute()
    ]


def _is_uploaded(path: str, excludes: Sequence[str]) -> bool:
    place = Path(os.path.normpath(ROOT / path))
    if not (place.exists() and place.is_relative_to(ROOT)):
        return False
    return f"/{place.relative_to(ROOT).parts[0]}" not in excludes


def _client(address: str) -> JobSubmissionClient:
    if not address.startswith(("http://", "https://")):
        raise ConfigError(f"--address: {address} is no URL; name the head's dashboard, such as http://head:8265")
    try:
        return _Client(address)
    except OSError as error:
        raise ConfigError(
            f"--address: nothing answers at {address} ({error}); name the head's dashboard, forwarded if it is remote"
        ) from error
    except (AuthenticationError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--address: {address} refused the request ({reason}); {TOKEN_HELP}") from error


def _accepted(client: JobSubmissionClient, command: str, runtime_env: dict[str, Any], run: str) -> str:
    """Uploads and submits under a name of our own, so that a lost answer can be asked for again without a second job.

    A head that has just started has no agent for jobs yet, which is worth another try.
    """
    job, deadline = f"rollmatch-{run}-{secrets.token_hex(4)}", time.monotonic() + ACCEPT_S
    while True:
        try:
            client.submit_job(entrypoint=command, runtime_env=runtime_env, submission_id=job, metadata={"run": run})
            return job
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
        if "already exists" in reason:
            return job  # the answer to an earlier try was lost
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"the cluster did not accept the job within {ACCEPT_S:.0f} s: {reason}; look at the head's log"
            )
        print(f"rollmatch: the cluster does not take jobs yet: {reason}", file=sys.stderr)
        time.sleep(5)


def _follow(client: JobSubmissionClient, job: str) -> int:
    """Prints the job's log until it ends; a connection that breaks meanwhile is made again, where the log was left."""
    printed = 0

    async def tail() -> None:
        nonlocal printed
        passed, pieces = 0, client.tail_job_logs(job)
        while True:
            try:
                text = await asyncio.wait_for(anext(pieces, None), SILENT_S)
            except TimeoutError:
                return
            if text is None:
                return
            new = text[max(0, printed - passed) :]
            passed += len(text)
            printed = max(printed, passed)
            print(new, end="", flush=True)

    answered = time.monotonic()
    while True:
        try:
            asyncio.run(tail())
            if client.get_job_status(job).is_terminal():
                return _exit_code(client, job)
            answered = time.monotonic()
        except LOST as error:
            if time.monotonic() - answered > LOST_S:
                raise DeadlineError(
                    f"{job}: the cluster has not answered for {LOST_S:.0f} s ({error}); the job may still run: look at "
                    "the head, and follow it with `ray job logs --follow`"
                ) from error
            print(f"rollmatch: lost the connection to {job}, and will look again: {error}", file=sys.stderr)
        time.sleep(2)


def _exit_code(client: JobSubmissionClient, job: str) -> int:
    info = client.get_job_info(job)
    print(f"rollmatch: {job} {info.status}: {info.message}", file=sys.stderr)
    if info.status == JobStatus.STOPPED:
        return INTERRUPTED
    if info.status == JobStatus.SUCCEEDED:
        return 0
    return info.driver_exit_code or 1


def _wants_stop(choice: str) -> bool:
    if choice != "ask":
        return choice == "stop"
    if not sys.stdin.isatty():
        return False
    try:
        answer = input("\nthe job is running: [d]etach, or [s]top it with a checkpoint? ")
    except EOFError:  # Ctrl-D
        return False
    return answer.strip().lower().startswith("s")


def _stop(client: JobSubmissionClient, job: str, grace_s: int) -> int:
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
