"""Who gets which request, and which request is to blame when actors die."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.member import Member
from actors.request_queue import RequestQueue
from protocol.contracts import Record, RequestKey, RolloutRequest
from protocol.errors import EngineError, SyncError
from tests.actors.members import synced


def request(number: int) -> RolloutRequest:
    record = Record(index=number, source=f"t:{number}", images=("x",), width=8, height=8, objects=())
    return RolloutRequest(key=RequestKey(number, 0), record=record, seed=0)


def queue_of(count: int, max_in_flight: int = 3, max_retries: int = 1) -> RequestQueue:
    queue = RequestQueue(max_in_flight, max_retries)
    queue.submit([request(number) for number in range(count)])
    return queue


def planned(queue: RequestQueue, *members: Member) -> dict[str, list[int]]:
    return {member.name: [asked.key.record for asked in batch] for member, batch in queue.plan(members)}


def test_each_request_goes_to_the_actor_that_owes_least_up_to_its_limit() -> None:
    first, second = synced("a"), synced("b")
    first.owed[RequestKey(99, 0)] = request(99)
    queue = queue_of(8)
    assert planned(queue, first, second) == {"a": [1, 3], "b": [0, 2, 4]}
    assert len(queue) == 3, "both hold three now"


def test_without_retries_a_request_shares_its_actor_until_that_dies() -> None:
    queue, member = queue_of(3, max_in_flight=64, max_retries=0), synced()
    assert planned(queue, member) == {"actor-0": [0, 1, 2]}

    queue.give_back(member, EngineError("gone"), by_request=True)
    assert planned(queue, member) == {"actor-0": [0]}, "who killed it is found by sending one alone"


def test_what_a_dead_actor_owed_goes_to_the_front_in_its_old_order() -> None:
    member = synced()
    queue = queue_of(5, max_retries=2)
    assert planned(queue, member) == {"actor-0": [0, 1, 2]}
    queue.give_back(member, EngineError("x"), by_request=True)
    assert planned(queue, member) == {"actor-0": [0, 1, 2]}


def test_a_request_that_killed_actors_is_sent_alone_and_blamed_only_then() -> None:
    member, other = synced("a"), synced("b")
    queue = queue_of(2)
    assert planned(queue, member) == {"a": [0, 1]}
    queue.give_back(member, EngineError("x"), by_request=True)
    assert planned(queue, member, other) == {"a": [0], "b": [1]}
    assert (member.num_suspects, other.num_suspects) == (1, 1)
    queue.submit([request(2)])
    assert planned(queue, member, other) == {}, "nobody joins them"
    queue.answered(member, RequestKey(0, 0))
    queue.give_back(other, EngineError("x"), by_request=True)
    (blamed,) = queue.blamed()
    assert blamed.key.record == 1
    assert blamed.failure is not None
    assert blamed.failure.startswith("EngineKilled: t:1: 2 engines ended")
    assert planned(queue, member) == {"a": [2]}


def test_no_request_is_blamed_for_a_load_that_failed() -> None:
    queue, member = queue_of(2, max_in_flight=64), synced()
    planned(queue, member)
    queue.give_back(member, SyncError("serves version 3, published was 4"), by_request=False)
    assert planned(queue, member) == {"actor-0": [0, 1]}, "it is no death of theirs"
    queue.give_back(member, EngineError("x"), by_request=True)
    assert planned(queue, member) == {"actor-0": [0]}
    queue.give_back(member, SyncError("serves version 3, published was 4"), by_request=False)
    assert queue.blamed() == []
    assert planned(queue, member) == {"actor-0": [0]}


def test_an_answer_that_comes_twice_is_an_error() -> None:
    member = synced()
    queue = queue_of(1)
    planned(queue, member)
    queue.answered(member, RequestKey(0, 0))
    with pytest.raises(KeyError):
        queue.answered(member, RequestKey(0, 0))


def deaths_until_answered(queue: RequestQueue, members: list[Member], killers: set[int]) -> tuple[Counter[int], int]:
    """An actor that owes a killer dies of it, the others answer. Deaths of each request, and rounds of answers."""
    deaths: Counter[int] = Counter()
    rounds = 0
    while len(queue) or any(member.owed for member in members):
        queue.plan(members)
        rounds += 1
        for member in members:
            owed = [key.record for key in member.owed]
            if killers.intersection(owed):
                deaths.update(owed)
                queue.give_back(member, EngineError("gone"), by_request=True)
            for key in list(member.owed):
                queue.answered(member, key)
    return deaths, rounds


@given(
    count=st.integers(1, 150),
    killers=st.sets(st.integers(0, 149), max_size=3),
    num_members=st.integers(1, 3),
    max_in_flight=st.integers(1, 64),
    max_retries=st.integers(0, 3),
)
def test_exactly_the_requests_that_kill_are_blamed_and_all_others_are_answered(
    count: int, killers: set[int], num_members: int, max_in_flight: int, max_retries: int
) -> None:
    killers = {number for number in killers if number < count}
    queue = queue_of(count, max_in_flight, max_retries)
    members = [synced(f"actor-{number}") for number in range(num_members)]
    deaths_until_answered(queue, members, killers)
    assert sorted(outcome.key.record for outcome in queue.blamed()) == sorted(killers)
    assert queue.oldest_s == 0.0, "nothing is open"
    assert all(not member.num_suspects for member in members)


def test_a_killer_among_256_costs_its_neighbours_a_few_rounds() -> None:
    queue = queue_of(256, max_in_flight=256, max_retries=3)
    deaths, rounds = deaths_until_answered(queue, [synced()], {100})
    assert deaths[100] == 5, "with all, with all, with all, with 15 others, alone"
    assert max(deaths[number] for number in range(256) if number != 100) == 4
    assert rounds == 3 + 16 + 16, "three with all, 16 groups, and the one that died once more, one by one"


def test_what_is_left_of_a_group_is_blamed_only_when_it_was_sent_alone() -> None:
    queue, member = queue_of(20, max_in_flight=20), synced()
    planned(queue, member)
    queue.give_back(member, EngineError("x"), by_request=True)
    assert planned(queue, member) == {"actor-0": [0, 1, 2, 3]}
    for number in (0, 1, 3):
        queue.answered(member, RequestKey(number, 0))
        assert not member.takes_requests
    queue.give_back(member, EngineError("x"), by_request=True)
    assert queue.blamed() == []
    assert planned(queue, member) == {"actor-0": [2]}
    queue.answered(member, RequestKey(2, 0))
    assert planned(queue, member) == {"actor-0": [4, 5, 6, 7]}


def test_a_load_that_fails_does_not_split_a_group() -> None:
    queue, member = queue_of(20, max_in_flight=20), synced()
    planned(queue, member)
    queue.give_back(member, EngineError("x"), by_request=True)
    planned(queue, member)
    queue.give_back(member, SyncError("serves version 3, published was 4"), by_request=False)
    assert len(queue) == 20, "each of them once"
    assert planned(queue, member) == {"actor-0": [0, 1, 2, 3]}


def test_suspects_wait_for_an_actor_that_owes_nothing_and_the_others_wait_behind_them() -> None:
    dead, busy = synced("a"), synced("b")
    queue = queue_of(3)
    assert planned(queue, dead, busy) == {"a": [0, 2], "b": [1]}
    queue.give_back(dead, EngineError("x"), by_request=True)
    queue.submit([request(3)])
    assert planned(queue, busy) == {}, "it would share their end, and what it took more would keep them waiting"
    queue.answered(busy, RequestKey(1, 0))
    assert planned(queue, busy) == {"b": [0]}


def test_the_oldest_open_request_counts_from_its_submission_until_its_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    queue, member = queue_of(1), synced()
    now = 103.0
    queue.submit([request(1)])
    planned(queue, member)
    now = 105.0
    assert queue.oldest_s == 5.0
    queue.answered(member, RequestKey(0, 0))
    assert queue.oldest_s == 2.0
