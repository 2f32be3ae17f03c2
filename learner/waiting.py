"""Waiting on the calls of many ranks: the first failure wins, and every wait ends.

A rank that fails takes others down with it; what is raised is the failure that explains theirs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import ray

from learner.results import PeerError
from protocol.errors import LearnerDeadlineError, LearnerError, RollmatchError

GRACE_S = 3.0
"""After the first failure: how long other ranks have to report theirs, which may be the cause."""
BROKEN_CONNECTION = ("gloo", "nccl", "connection reset", "connection closed", "broken pipe")


def wait_all(calls: Mapping[int, ray.ObjectRef], timeout_s: float, what: str) -> list[Any]:
    """Results in the order of `calls`, which holds one call per rank.

    Raises:
        LearnerDeadlineError: not all ranks answered in `timeout_s`.
        What a rank raised, as soon as one does: its type where it is ours, else LearnerError, with the rank and its
        traceback in the message.
    """
    deadline = time.monotonic() + timeout_s
    waiting = list(calls.values())
    while waiting:
        left = max(0.0, deadline - time.monotonic())
        done, waiting = ray.wait(waiting, num_returns=1, timeout=left, fetch_local=False)
        if not done:
            late = [rank for rank, call in calls.items() if call in waiting]
            raise LearnerDeadlineError(
                f"{what}: learner ranks {late} of {len(calls)} did not answer within {timeout_s:.0f} s; look at their "
                "logs, or raise cluster.step_timeout_s if the work is that long"
            )
        if failure_of(done[0]) is not None:
            _raise_root_cause(calls, what)
    return list(ray.get(list(calls.values())))


def failure_of(call: ray.ObjectRef) -> ray.exceptions.RayError | None:
    """What a finished call raised, if it did."""
    try:
        ray.get(call)
    except ray.exceptions.RayError as error:
        return error
    return None


def drain(stream: Any, others: Sequence[ray.ObjectRef], timeout_s: float, what: str) -> Iterator[ray.ObjectRef]:
    """References as the streaming generator of rank 0 yields them; ends at once when a call of `others` fails."""
    deadline = time.monotonic() + timeout_s
    waiting = list(others)
    while True:
        left = max(0.0, deadline - time.monotonic())
        done, _ = ray.wait([stream, *waiting], num_returns=1, timeout=left, fetch_local=False)
        if not done:
            raise LearnerDeadlineError(
                f"{what}: learner rank 0 was not done after {timeout_s:.0f} s; raise "
                "cluster.step_timeout_s if merging takes that long"
            )
        if done[0] in waiting:
            if failure_of(done[0]) is not None:
                return
            waiting.remove(done[0])
            continue
        try:
            yield next(stream)
        except StopIteration:
            return


def _raise_root_cause(calls: Mapping[int, ray.ObjectRef], what: str) -> NoReturn:
    """Raises the failure that explains the others: a rank that dies takes its peers' connections down with it."""
    done, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=GRACE_S, fetch_local=False)
    finished = {rank: failure_of(call) for rank, call in calls.items() if call in done}
    failures = [(rank, error) for rank, error in finished.items() if error is not None]
    rank, error = min(failures, key=lambda failure: _is_consequence(failure[1]))
    raise _named(error, rank, what) from error


def _is_consequence(error: ray.exceptions.RayError) -> bool:
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    return isinstance(cause, PeerError) or any(word in str(cause).lower() for word in BROKEN_CONNECTION)


def _named(error: ray.exceptions.RayError, rank: int, what: str) -> RollmatchError:
    """The failure of a rank as an error of ours that says which rank, during what, and where."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    text = f"learner rank {rank} failed in {what}: {cause}"
    if cause is not error:
        text += f"\n{error}"  # Ray renders a task's error as the traceback of the process it happened in
    return type(cause)(text) if isinstance(cause, RollmatchError) else LearnerError(text)
