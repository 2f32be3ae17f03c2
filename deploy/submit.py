"""`rollmatch submit`: a run as a job on a Ray cluster that exists.

The checkout is uploaded as the job's working directory, without data, runs and `.venv` (configs/runtime_env.yaml); the
job runs `python -m deploy.cli train` on the head. Its log is followed until it ends, and its exit code is this one's.
The token is where Ray looks for it: RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

| who waits | for what | who ends the wait | deadline |
|---|---|---|---|
| `_accepted` | the head's job agent | the head | 120 s after the first answer |
| `_Client` | the upload of the checkout | the network | a minute, and a second more for each 64 KiB |

Following and stopping: `deploy.job`.
"""

from __future__ import annotations

import argparse
import math
import os
import secrets
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from deploy.job import follow, stop
from deploy.run_paths import on_a_hub, read_paths, written_paths
from protocol.config import RunConfig
from protocol.errors import ConfigError, DeadlineError, refuse

ROOT = Path(__file__).resolve().parent.parent
RUNTIME_ENV = ROOT / "configs" / "runtime_env.yaml"
ACCEPT_S, REQUEST_S = 120.0, 60.0
SLOWEST_BYTES_S = 64 * 2**10
"""An uplink of half a megabit per second; a dead one is noticed the later the more there is to send."""
TOKEN_HELP = (
    "the cluster's token belongs into RAY_AUTH_TOKEN or ~/.ray/auth_token, with RAY_AUTH_MODE=token; on the head, "
    "`ray get-auth-token` prints it"
)


class _Client(JobSubmissionClient):  # type: ignore[misc]
    """Every request has a deadline, which Ray's own client does not give it."""

    def _do_request(self, method: str, endpoint: str, *, data: bytes | None = None, **options: Any) -> Any:
        # The first number is the connection's and, over plain http, that of sending the whole body.
        limits = (REQUEST_S + len(data or b"") / SLOWEST_BYTES_S, REQUEST_S)
        return super()._do_request(method, endpoint, data=data, timeout=limits, **options)


def submit(config: RunConfig, arguments: argparse.Namespace) -> int:
    """Submits and follows; the exit code of the job's command, 130 when it was stopped.

    Raises:
        ConfigError: the run cannot work as a job, or the cluster does not answer; nothing was submitted.
        DeadlineError: a stopped job did not end.
    """
    runtime_env: dict[str, Any] = yaml.safe_load(RUNTIME_ENV.read_text())
    refuse(portability(config, runtime_env["excludes"]))
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
        return follow(client, job)
    except KeyboardInterrupt:
        if _wants_stop(arguments.on_interrupt):
            return stop(client, job, grace)
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

    A head that has just started has no agent for jobs yet, which is worth another try. The time for that begins when
    the first try ends, since the upload within it has a limit of its own.
    """
    job, deadline = f"rollmatch-{run}-{secrets.token_hex(4)}", math.inf
    while True:
        try:
            client.submit_job(entrypoint=command, runtime_env=runtime_env, submission_id=job, metadata={"run": run})
            return job
        except (RuntimeError, OSError) as error:
            reason = str(error).splitlines()[0]
        if "already exists" in reason:
            return job  # the answer to an earlier try was lost
        deadline = min(deadline, time.monotonic() + ACCEPT_S)
        if time.monotonic() > deadline:
            raise DeadlineError(
                f"the cluster did not accept the job within {ACCEPT_S:.0f} s: {reason}; look at the head's log"
            )
        print(f"rollmatch: the cluster does not take jobs yet: {reason}", file=sys.stderr)
        time.sleep(5)


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
