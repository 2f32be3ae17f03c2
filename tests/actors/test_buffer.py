"""Slots, leases and order of the segment buffer."""

from __future__ import annotations

import random

import pytest

from actors.buffer import Entry, EntryState, SegmentBuffer
from protocol.contracts import RequestKey
from protocol.errors import ContractError
from protocol.segments import SegmentMeta, SegmentStats


def meta(record: int, num_bytes: int = 10) -> SegmentMeta:
    return SegmentMeta(
        key=RequestKey(record),
        length=4,
        num_bytes=num_bytes,
        first_version=0,
        last_version=0,
        stats=SegmentStats(),
    )


def buffer_with(*orders: int, max_bytes: int = 1000, max_segments: int = 100) -> SegmentBuffer:
    buffer = SegmentBuffer(max_bytes, max_segments)
    for order in orders:
        buffer.put(meta(order), f"segment {order}", order=order)
    return buffer


def orders(entries: list[Entry]) -> list[int]:
    return [entry.order for entry in entries]


def test_entries_are_taken_in_request_order_whatever_the_order_of_arrival() -> None:
    buffer = buffer_with(3, 0, 2, 1)
    assert orders(buffer.take(3)) == [0, 1, 2]
    assert orders(buffer.take(1)) == [3]


def test_take_does_not_pass_a_request_that_is_still_running() -> None:
    buffer = buffer_with(0, 1, 3, 4)
    assert buffer.num_takable(2) == 2
    with pytest.raises(ContractError, match=r"asked for 3 segments, 2 of 4 READY ones are older than .* request 2"):
        buffer.take(3, oldest_running=2)
    assert orders(buffer.take(2, oldest_running=2)) == [0, 1]


def test_a_taken_entry_keeps_its_slot_until_release() -> None:
    buffer = buffer_with(0, 1, max_segments=2)
    entries = buffer.take(1)
    assert (len(buffer.ready()), buffer.num_taken, buffer.num_bytes, buffer.room(0)) == (1, 1, 20, 0)
    buffer.release(entries)
    assert (buffer.num_segments, buffer.num_bytes, buffer.room(0)) == (1, 10, 1)


def test_a_buffer_may_be_filled_to_both_bounds_and_not_beyond() -> None:
    for bounds in ({"max_bytes": 20}, {"max_segments": 2}):
        full = buffer_with(0, 1, **bounds)
        with pytest.raises(ContractError, match="would make 3 segments of 30 bytes"):
            full.put(meta(2), "segment 2", order=2)
        assert (full.num_segments, full.num_bytes) == (2, 20)
    for bounds in ({"max_bytes": 0}, {"max_segments": 0}):
        with pytest.raises(ValueError, match="bounds must be > 0"):
            buffer_with(**bounds)


def test_the_oldest_segment_is_the_one_that_was_put_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.monotonic", lambda: 105.0)
    buffer = buffer_with()
    for order, since in ((1, 100.0), (0, 103.0)):
        buffer.put(meta(order), f"segment {order}", order=order).since = since
    assert buffer.oldest_s == 5.0
    buffer.release(buffer.take(2))
    assert buffer.oldest_s == 0.0


def test_requeued_entries_return_to_their_old_place() -> None:
    buffer = buffer_with(0, 1, 2)
    entries = buffer.take(2)
    buffer.requeue(entries[:1])
    assert entries[0].state is EntryState.READY
    assert orders(buffer.take(2)) == [0, 2]


def test_a_released_place_can_be_filled_again() -> None:
    buffer = buffer_with(0, 1)
    buffer.release(buffer.take(1))
    assert (buffer.num_segments, buffer.num_bytes) == (1, 10)
    buffer.put(meta(0), "again", order=0)
    assert orders(buffer.ready()) == [0, 1]


def test_overflow_is_an_error_with_its_numbers_and_changes_nothing() -> None:
    buffer = buffer_with(0, max_segments=1)
    with pytest.raises(ContractError, match="would make 2 segments of 20 bytes, the bounds are 1 and 1000"):
        buffer.put(meta(1), "x", order=1)
    tight = buffer_with(0, max_bytes=15)
    with pytest.raises(ContractError, match="2 segments of 20 bytes, the bounds are 100 and 15"):
        tight.put(meta(1), "x", order=1)
    assert (tight.num_segments, tight.num_bytes) == (1, 10)


def test_room_reserves_the_largest_segment_for_each_running_request() -> None:
    buffer = SegmentBuffer(max_bytes=100, max_segments=50, max_segment_bytes=30)
    assert buffer.room(num_running=0) == 3
    assert buffer.room(num_running=2) == 1
    buffer.put(meta(0, num_bytes=10), "small", order=0)
    assert buffer.room(num_running=2) == 1, "90 bytes are left: three segments of any size"
    assert buffer.room(num_running=5) == 0


def test_segments_that_are_lost_may_come_back_larger_beside_what_was_admitted_meanwhile() -> None:
    buffer = SegmentBuffer(max_bytes=100, max_segments=50, max_segment_bytes=30)
    for order in range(3):
        buffer.put(meta(order), "small", order=order)
    lost = buffer.take(3)
    assert buffer.room(num_running=0) == 2
    buffer.lose(lost)  # three to ask for again, beside the two
    for order in range(5):
        buffer.put(meta(order + 10, num_bytes=30), "large", order=order)
    assert buffer.num_bytes == 150
    assert buffer.room(num_running=0) == 0
    with pytest.raises(ContractError, match="would make 6 segments of 180 bytes, the bounds are 50 and 160"):
        buffer.put(meta(20, num_bytes=30), "one that nobody admitted", order=20)
    buffer.release(buffer.take(5))
    assert buffer.room(num_running=0) == 3
    for order in range(30, 33):
        buffer.put(meta(order, num_bytes=30), "large", order=order)
    with pytest.raises(ContractError, match="the bounds are 50 and 100"):
        buffer.put(meta(33, num_bytes=30), "large", order=33)


def test_a_rollout_that_is_delivered_twice_is_refused() -> None:
    buffer = buffer_with(0)
    with pytest.raises(ContractError, match="record=0/epoch=0/rollout=0 with order 5 is buffered already"):
        buffer.put(meta(0), "x", order=5)
    with pytest.raises(ContractError, match="buffered already"):
        buffer.put(meta(9), "x", order=0)


def test_an_entry_is_returned_exactly_once() -> None:
    buffer = buffer_with(0, 1)
    entries = buffer.take(2)
    with pytest.raises(ContractError, match="name one twice"):
        buffer.release([entries[0], entries[0]])
    buffer.release(entries)
    with pytest.raises(ContractError, match="is not leased"):
        buffer.release(entries[:1])
    with pytest.raises(ContractError, match="is not leased"):
        buffer.requeue(entries[1:])


def test_bounds_must_be_positive() -> None:
    with pytest.raises(ValueError, match="got max_bytes=0, max_segments=1"):
        SegmentBuffer(0, 1)


def test_counts_agree_with_the_entries_over_random_histories() -> None:
    rng = random.Random(3)
    for _ in range(200):
        buffer, taken, trained = SegmentBuffer(10_000, 50), [], []
        for order in rng.sample(range(40), 40):
            buffer.put(meta(order, num_bytes=rng.randint(1, 99)), order, order=order)
            if rng.random() < 0.4:
                taken += buffer.take(rng.randint(0, len(buffer.ready())))
            rng.shuffle(taken)
            given_back = [taken.pop() for _ in range(rng.randint(0, len(taken)))]
            if rng.random() < 0.5:
                buffer.requeue(given_back)
            else:
                buffer.release(given_back)
                trained += orders(given_back)
            assert orders(buffer.ready()) == sorted(orders(buffer.ready()))
            assert buffer.num_bytes == sum(entry.meta.num_bytes for entry in [*buffer.ready(), *taken])
            assert buffer.num_taken == len(taken)
        assert sorted([*trained, *orders(taken), *orders(buffer.ready())]) == list(range(40))
