"""Requests before an engine begins them: whose images are prepared when, and who is handed out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from actors.waiting_requests import WaitingRequests
from protocol.contracts import Record, RequestKey, RolloutRequest
from protocol.errors import ImageError

TIMEOUT_S = 20


class Images:
    """`prepare`, which takes one of `there` for each; the third image cannot be read."""

    def __init__(self, there: int) -> None:
        self.there = threading.Semaphore(there)
        self.done: list[int] = []

    def __call__(self, request: RolloutRequest) -> int:
        assert self.there.acquire(timeout=TIMEOUT_S)
        self.done.append(request.key.record)
        if request.key.record == 3:
            raise ImageError("t:3: cannot read it")
        return 10 * request.key.record


def request(number: int) -> RolloutRequest:
    record = Record(index=number, source=f"t:{number}", images=("x.png",), width=8, height=8, objects=())
    return RolloutRequest(key=RequestKey(number, 0), record=record, seed=0)


@pytest.fixture
def waiting() -> Iterator[WaitingRequests[str]]:
    made: WaitingRequests[str] = WaitingRequests(admission=2)
    made.add((request(number), f"caller {number}") for number in range(6))
    yield made
    made.close()


def taken(waiting: WaitingRequests[str], idle: bool) -> list[int]:
    return [found.key.record for found, _, _ in waiting.take(idle)]


def test_an_idle_engine_is_given_a_whole_admission_with_what_was_prepared(waiting: WaitingRequests[str]) -> None:
    waiting.prepare_next(Images(there=6))
    found = [(asked.key.record, to, prepared.result(TIMEOUT_S)) for asked, to, prepared in waiting.take(idle=True)]
    assert found == [(0, "caller 0", 0), (1, "caller 1", 10)]
    assert len(waiting) == 4


def test_a_busy_engine_is_given_what_is_ready_and_nothing_behind_it(waiting: WaitingRequests[str]) -> None:
    images = Images(there=1)
    waiting.prepare_next(images)
    waiting._queue[0].prepared.result(TIMEOUT_S)  # type: ignore[union-attr]
    assert taken(waiting, idle=False) == [0]
    assert taken(waiting, idle=False) == []
    images.there.release(5)
    assert taken(waiting, idle=True) == [1, 2]


def test_two_admissions_are_prepared_in_order_and_no_others(waiting: WaitingRequests[str]) -> None:
    images = Images(there=6)
    waiting.prepare_next(images)
    waiting.prepare_next(images)
    waiting._queue[2].prepared.result(TIMEOUT_S)  # type: ignore[union-attr]
    with pytest.raises(ImageError):
        waiting._queue[3].prepared.result(TIMEOUT_S)  # type: ignore[union-attr]
    assert images.done == [0, 1, 2, 3]


def test_requests_that_come_back_are_begun_in_the_order_in_which_all_are_prepared(
    waiting: WaitingRequests[str],
) -> None:
    images = Images(there=9)
    waiting.prepare_next(images)
    begun = [(asked, to) for asked, to, _ in waiting.take(idle=True)]
    waiting.give_back(begun)
    order = taken(waiting, idle=True)
    assert taken(waiting, idle=True) == [], "not prepared, so not given out"
    while len(waiting):
        waiting.prepare_next(images)
        for found, _, prepared in waiting.take(idle=True):
            prepared.result(TIMEOUT_S)
            order.append(found.key.record)
    assert order == [2, 3, 0, 1, 4, 5]
    assert images.done == [0, 1, *order]


def test_taking_all_ends_the_preparing_and_waits_for_nobody(waiting: WaitingRequests[str]) -> None:
    images = Images(there=0)
    waiting.prepare_next(images)
    assert [to for _, to in waiting.take_all()] == [f"caller {number}" for number in range(6)]
    assert len(waiting) == 0
    waiting.add([(request(6), "caller 6")])
    with ThreadPoolExecutor(1) as threads:
        closing = threads.submit(waiting.close)
        images.there.release(1)  # the one that was begun
        closing.result(TIMEOUT_S)
    assert images.done in ([0], []), "or none, if its thread had not begun"


def test_what_nobody_waits_for_any_more_is_not_prepared_before_what_comes_later(
    waiting: WaitingRequests[str],
) -> None:
    images = Images(there=0)
    waiting.prepare_next(images)
    waiting.take_all()
    waiting.add([(request(6), "caller 6")])
    waiting.prepare_next(images)
    images.there.release(5)
    ((_, _, prepared),) = waiting.take(idle=True)
    assert prepared.result(TIMEOUT_S) == 60
    assert images.done in ([0, 6], [6]), "the first, if it was begun"


def test_closing_waits_for_the_image_that_is_being_prepared_and_for_no_other(waiting: WaitingRequests[str]) -> None:
    images = Images(there=1)
    waiting.prepare_next(images)
    waiting._queue[0].prepared.result(TIMEOUT_S)  # type: ignore[union-attr]
    with ThreadPoolExecutor(1) as threads:
        closing = threads.submit(waiting.close)
        images.there.release(1)
        closing.result(TIMEOUT_S)
    assert images.done in ([0, 1], [0]), "the second, if it was begun"


@pytest.mark.parametrize("more", [1, 3])
def test_requests_that_come_back_are_behind_those_that_are_prepared_and_before_the_others(
    waiting: WaitingRequests[str], more: int
) -> None:
    waiting.add((request(number), f"caller {number}") for number in range(6, 6 + more))
    waiting.prepare_next(Images(there=9))
    waiting.give_back([(asked, to) for asked, to, _ in waiting.take(idle=True)])
    order = [each.request.key.record for each in waiting._queue]
    assert order == [2, 3, 0, 1, *range(4, 6 + more)]
