"""What becomes of an actor that is silent or fails, and of the requests that it owed."""

from __future__ import annotations

import pytest

from actors.member import ActorState, Call, Member
from actors.request_queue import RequestQueue
from actors.supervision import PoolSettings, judge, plan_restart
from protocol.contracts import Record, RequestKey, RolloutRequest
from protocol.errors import DeadlineError, EngineError, SyncError

LIMITS = PoolSettings(
    num_actors=2,
    max_in_flight_per_actor=3,
    startup_timeout_s=1,
    stall_timeout_s=10,
    sync_timeout_s=1,
    max_restarts=2,
    max_retries=1,
    min_healthy=1,
)


def synced(name: str = "actor-0") -> Member:
    member = Member(name)
    for state in (ActorState.STARTING, ActorState.STALE, ActorState.SYNCED):
        member.enter(state)
    return member


def request(number: int) -> RolloutRequest:
    record = Record(index=number, source=f"t:{number}", images=("x",), width=8, height=8, objects=())
    return RolloutRequest(key=RequestKey(number, 0), record=record, seed=0)


def queue_of(count: int) -> RequestQueue:
    queue = RequestQueue(LIMITS.max_in_flight_per_actor, max_retries=LIMITS.max_retries)
    queue.submit([request(number) for number in range(count)])
    return queue


def planned(queue: RequestQueue, *members: Member) -> dict[str, list[int]]:
    return {member.name: [asked.key.record for asked in batch] for member, batch in queue.plan(members)}


def test_an_arrow_that_is_not_drawn_is_refused() -> None:
    with pytest.raises(AssertionError, match="dead -> synced is not an arrow"):
        Member("actor-0").enter(ActorState.SYNCED)


def test_a_silent_actor_is_suspect_at_half_the_limit_and_given_no_requests() -> None:
    member = synced()
    member.progressed_at = 100.0
    judge(member, 10, now=105.0)
    assert member.takes_requests
    judge(member, 10, now=105.1)
    assert (member.state, member.takes_requests) == (ActorState.SUSPECT, False)
    member.progressed_at = 106.0
    judge(member, 10, now=107.0)
    assert member.state is ActorState.SYNCED
    with pytest.raises(DeadlineError, match=r"did no step or answered no heartbeat for 11 s"):
        judge(member, 10, now=117.0)


def test_an_overdue_start_or_load_is_named() -> None:
    member = Member("actor-0")
    member.enter(ActorState.STARTING)
    member.call = Call(ref=None, what="actor-0 to start", deadline=100.0)
    judge(member, 10, now=100.0)
    with pytest.raises(DeadlineError, match="gave up waiting for actor-0 to start; the actor is restarted"):
        judge(member, 10, now=100.1)


def test_pauses_double_and_an_actor_is_given_up_after_its_limit_in_a_row() -> None:
    member, other = synced(), synced("actor-1")
    pauses = []
    for _ in range(LIMITS.max_restarts):
        before = member.retry_at
        plan_restart(member, [member, other], LIMITS, EngineError("x"))
        pauses.append(member.retry_at - before)
    assert pauses[1] == pytest.approx(1.0, abs=0.1), "1 s, then 2 s from about the same moment"
    assert not member.given_up
    plan_restart(member, [member, other], LIMITS, EngineError("x"))
    assert member.given_up
    assert member.causes == {"EngineError": 3}


def test_the_run_ends_when_fewer_than_min_healthy_actors_are_left() -> None:
    member, other = synced(), synced("actor-1")
    other.given_up = True
    member.failures = LIMITS.max_restarts
    with pytest.raises(EngineError, match=r"0 of 2 actors are left, rollout.min_healthy is 1; last cause: gone"):
        plan_restart(member, [member, other], LIMITS, EngineError("gone"))


def test_each_request_goes_to_the_actor_that_owes_least_up_to_its_limit() -> None:
    first, second = synced("a"), synced("b")
    first.owed[RequestKey(99, 0)] = request(99)
    queue = queue_of(8)
    assert planned(queue, first, second) == {"a": [1, 3], "b": [0, 2, 4]}
    assert len(queue) == 3, "both hold three now"


def test_without_retries_a_request_shares_its_actor_until_that_dies() -> None:
    queue, member = RequestQueue(max_in_flight=64, max_retries=0), synced()
    queue.submit([request(number) for number in range(3)])
    assert planned(queue, member) == {"actor-0": [0, 1, 2]}

    queue.give_back(member, EngineError("gone"))
    assert planned(queue, member) == {"actor-0": [0]}, "who killed it is found by sending one alone"


def test_what_a_dead_actor_owed_goes_to_the_front_in_its_old_order() -> None:
    member = synced()
    queue = queue_of(5)
    assert planned(queue, member) == {"actor-0": [0, 1, 2]}
    queue.give_back(member, EngineError("x"))
    queue.submit([])
    queue_again = [asked.key.record for asked in queue._queue]
    assert queue_again == [0, 1, 2, 3, 4]


def test_a_request_that_killed_actors_is_sent_alone_and_blamed_only_then() -> None:
    member, other = synced("a"), synced("b")
    queue = queue_of(2)
    assert planned(queue, member) == {"a": [0, 1]}
    queue.give_back(member, EngineError("x"))
    assert planned(queue, member, other) == {"a": [0], "b": [1]}
    assert (member.alone, other.alone) == (True, True)
    queue.submit([request(2)])
    assert planned(queue, member, other) == {}, "nobody joins them"
    queue.answered(member, RequestKey(0, 0))
    queue.give_back(other, EngineError("x"))
    (blamed,) = queue.blamed()
    assert blamed.key.record == 1
    assert blamed.failure is not None
    assert blamed.failure.startswith("EngineKilled: t:1: 2 engines ended")
    assert planned(queue, member) == {"a": [2]}


def test_no_request_is_blamed_for_a_load_that_failed() -> None:
    queue, member = RequestQueue(max_in_flight=64, max_retries=1), synced()
    queue.submit([request(0), request(1)])
    planned(queue, member)
    queue.give_back(member, SyncError("serves version 3, published was 4"))
    assert planned(queue, member) == {"actor-0": [0, 1]}, "it is no death of theirs"
    queue.give_back(member, EngineError("x"))
    assert planned(queue, member) == {"actor-0": [0]}
    queue.give_back(member, SyncError("serves version 3, published was 4"))
    assert queue.blamed() == []
    assert planned(queue, member) == {"actor-0": [0]}


def test_an_answer_that_comes_twice_is_an_error() -> None:
    member = synced()
    queue = queue_of(1)
    planned(queue, member)
    queue.answered(member, RequestKey(0, 0))
    with pytest.raises(KeyError):
        queue.answered(member, RequestKey(0, 0))
