"""Ray's failures in our words: what a call or a stream of an actor gives, or which of our errors ended it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from actors.rollout_actor import Outcome
from protocol.errors import ContractError, DeadlineError, EngineError, InfrastructureFailure, SyncError


class ActorLost(EngineError):
    """The actor's process is gone."""


class AnswerStream:
    """One running `rollout` call: pairs of (segment, outcome), as far as they have arrived."""

    def __init__(self, generator: Any, num_requests: int) -> None:
        self.generator = generator
        self._left = num_requests
        self._segment: Any = None

    def take(self, what: str) -> Iterator[tuple[Outcome, Any]]:
        """Each answer that is here, with its segment's reference (None without one).

        The segment comes first. Nearly always an outcome that arrived vouches for it; where the process died at that
        very moment, Ray may hand over a reference that cannot be read, which the learner reports like a lost object.

        Raises what `get` raises when the call failed, before or instead of an answer.
        """
        while self._left and ray.wait([self.generator], timeout=0, fetch_local=False)[0]:
            try:
                ref = next(self.generator)
            except StopIteration:
                if self._segment is not None:
                    get(self._segment, 60.0, what)  # the stream's last reference holds the error that ended it
                raise ActorLost(f"{what}: the stream ended with {self._left} requests unanswered") from None
            if self._segment is None:
                self._segment = ref
                continue
            outcome: Outcome = get(ref, 60.0, what)
            segment, self._segment = self._segment, None
            self._left -= 1
            yield outcome, segment if outcome.meta is not None else None

    @property
    def ended(self) -> bool:
        """Every request of the call was answered."""
        return self._left == 0


def get(ref: Any, timeout_s: float, what: str) -> Any:
    """`ray.get` with a deadline.

    Raises DeadlineError, ActorLost, or the error that the actor raised: ours by type, others as EngineError.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except GetTimeoutError as error:
        message = f"waited {timeout_s:.0f} s for {what}; raise the timeout or look at the actor's log"
        raise DeadlineError(message) from error
    except RayActorError as error:
        raise ActorLost(f"lost the process while waiting for {what}: {error}") from error
    except RayTaskError as error:
        if isinstance(error.cause, SyncError | InfrastructureFailure | ContractError):
            raise error.cause from error
        raise EngineError(f"{what}: {error}") from error


def ready_now(refs: list[Any], timeout_s: float) -> set[Any]:
    """Those of `refs` that are there; waits up to `timeout_s` for the first one, sleeps where there is none."""
    if not refs:
        time.sleep(timeout_s)
        return set()
    if timeout_s > 0 and not ray.wait(refs, num_returns=1, timeout=timeout_s, fetch_local=False)[0]:
        return set()
    return set(ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[0])
