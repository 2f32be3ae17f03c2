"""Ray's calls in our words: those that ended arrive in one inbox, and a failure is one of our errors."""

from __future__ import annotations

import queue
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import (
    GetTimeoutError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    RayTaskError,
)

from protocol.errors import ContractError, DeadlineError, EngineError, InfrastructureFailure, SyncError

Owner = TypeVar("Owner")

GONE = (RayActorError, ObjectLostError, NodeDiedError, OutOfMemoryError)
"""The process is gone, or what it answered is: a node takes its objects with it, and one that runs out of memory ends
processes."""


class ActorLost(EngineError):
    """The actor's process is gone, or the object that held its answer."""


@dataclass(frozen=True, slots=True)
class Ended(Generic[Owner]):
    """One call that ended."""

    owner: Owner
    ref: Any
    future: Future[Any]

    def result(self, what: str) -> Any:
        """What the call returned. Raises what `get` raises, but no DeadlineError."""
        error = self.future.exception(timeout=0)
        if error is not None:
            raise translated(error, what)
        return self.future.result(timeout=0)


class Inbox(Generic[Owner]):
    """Calls that ended, in that order. Waiting costs the same however many calls are open."""

    def __init__(self) -> None:
        self._ended: queue.SimpleQueue[Ended[Owner] | None] = queue.SimpleQueue()

    def expect(self, owner: Owner, ref: Any) -> None:
        """Puts the call into the inbox when it ends; Ray's own thread does it, with the value."""
        ref.future().add_done_callback(lambda future: self._ended.put(Ended(owner, ref, future)))

    def wake(self) -> None:
        """Ends the wait of `take`, from any thread: something else has happened."""
        self._ended.put(None)

    def take(self, timeout_s: float) -> list[Ended[Owner]]:
        """Everything that is there; waits up to `timeout_s` for the first, or for `wake`."""
        found: list[Ended[Owner] | None] = []
        try:
            found.append(self._ended.get(block=timeout_s > 0, timeout=timeout_s))
            while True:
                found.append(self._ended.get_nowait())
        except queue.Empty:
            return [ended for ended in found if ended is not None]


def get(ref: Any, timeout_s: float, what: str) -> Any:
    """`ray.get` with a deadline.

    Raises DeadlineError, ActorLost, or the error that the actor raised: ours by type, others and Ray's as EngineError.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except GetTimeoutError as error:
        message = f"waited {timeout_s:.0f} s for {what}; raise the timeout or look at the actor's log"
        raise DeadlineError(message) from error
    except RayError as error:
        raise translated(error, what) from error


def translated(error: BaseException, what: str) -> BaseException:
    """The error of ours that says what Ray's failure means; others as they are."""
    if isinstance(error, GONE):
        return ActorLost(f"lost the process or its answer while waiting for {what}: {error}")
    if isinstance(error, RayTaskError) and isinstance(error.cause, SyncError | InfrastructureFailure | ContractError):
        return error.cause
    if isinstance(error, RayError):
        return EngineError(f"{what}: {error}")
    return error
