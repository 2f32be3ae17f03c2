"""What of Ray's failures becomes which of ours, and in which order ended calls arrive."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from ray.exceptions import (
    ActorUnschedulableError,
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)

from actors.ray_calls import ActorLost, Inbox
from protocol.errors import EngineError, SyncError


class FakeRef:
    """A reference whose call ends when the test says so."""

    def __init__(self) -> None:
        self._future: Future[Any] = Future()

    def future(self) -> Future[Any]:
        return self._future

    def end(self, value: Any) -> None:
        if isinstance(value, BaseException):
            self._future.set_exception(value)
        else:
            self._future.set_result(value)


def ended_with(value: Any) -> Any:
    inbox: Inbox[str] = Inbox()
    ref = FakeRef()
    inbox.expect("a", ref)
    ref.end(value)
    (ended,) = inbox.take(timeout_s=0)
    return ended.result("answers of actor-0")


def test_calls_arrive_in_the_order_in_which_they_ended_and_only_once() -> None:
    inbox: Inbox[str] = Inbox()
    refs = [FakeRef(), FakeRef(), FakeRef()]
    for name, ref in zip("abc", refs, strict=True):
        inbox.expect(name, ref)
    refs[2].end("late asked, first ended")
    refs[0].end("second")

    assert [(ended.owner, ended.ref) for ended in inbox.take(timeout_s=1)] == [("c", refs[2]), ("a", refs[0])]
    assert inbox.take(timeout_s=0) == []


def test_a_wait_ends_when_it_is_woken() -> None:
    inbox: Inbox[str] = Inbox()
    inbox.expect("a", ref := FakeRef())
    inbox.wake()

    assert inbox.take(timeout_s=60) == []
    ref.end(1)
    assert [ended.owner for ended in inbox.take(timeout_s=60)] == ["a"]


def test_a_call_brings_what_it_returned() -> None:
    assert ended_with(7) == 7


@pytest.mark.parametrize(
    "failure",
    [ObjectLostError("00", None, ""), RayActorError("00", "killed"), NodeDiedError("gone"), OutOfMemoryError("95 %")],
    ids=["object", "process", "node", "memory"],
)
def test_an_answer_that_is_gone_counts_as_a_lost_actor(failure: Exception) -> None:
    with pytest.raises(ActorLost, match="answers of actor-0"):
        ended_with(failure)


def test_what_else_ray_reports_of_an_actor_is_a_failure_of_that_actor() -> None:
    with pytest.raises(EngineError, match=r"answers of actor-0: .*no room") as raised:
        ended_with(ActorUnschedulableError("no room"))
    assert not isinstance(raised.value, ActorLost)


@pytest.mark.parametrize(
    ("cause", "expected"),
    [(SyncError("half"), SyncError), (EngineError("lost"), EngineError), (KeyError("x"), EngineError)],
)
def test_what_the_actor_raised_keeps_its_type_where_the_pool_acts_on_it(
    cause: Exception, expected: type[Exception]
) -> None:
    with pytest.raises(expected, match=r"half|lost|answers of actor-0"):
        ended_with(RayTaskError("collect", "Traceback", cause).as_instanceof_cause())
