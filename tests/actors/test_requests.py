"""The order of owed rollouts is a function of seed and position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from actors.requests import RequestStream, request_seed
from protocol.contracts import Record, RequestKey


class Records:
    def __len__(self) -> int:
        return 5

    def read(self, rows: Iterable[tuple[int, int]]) -> Iterator[Record]:
        for index, _ in rows:
            yield Record(index=index, source=f"t:{index + 1}", images=("x.png",), width=8, height=8, objects=())


def keys(stream: RequestStream, count: int) -> list[RequestKey]:
    return [request.key for _, request in stream.take(count, min_version=0)]


def test_every_epoch_asks_each_record_once() -> None:
    taken = keys(RequestStream(Records(), seed=3), 10)
    for epoch in (0, 1):
        assert sorted(key.record for key in taken if key.epoch == epoch) == [0, 1, 2, 3, 4]


def test_a_window_that_an_epoch_does_not_fill_is_filled_up_from_the_next() -> None:
    stream = RequestStream(Records(), seed=3)
    assert [[key.epoch for key in keys(stream, 3)] for _ in range(2)] == [[0, 0, 0], [0, 0, 1]]


def test_a_position_is_all_that_a_resume_needs() -> None:
    whole = keys(RequestStream(Records(), seed=3), 13)
    resumed = RequestStream(Records(), seed=3, position=6)
    assert keys(resumed, 7) == whole[6:]


def test_another_seed_gives_another_order() -> None:
    orders = {tuple(keys(RequestStream(Records(), seed=seed), 10)) for seed in range(8)}
    assert len(orders) > 1


def test_positions_count_up_without_gaps() -> None:
    stream = RequestStream(Records(), seed=0)
    positions = [position for position, _ in [*stream.take(4, 0), *stream.take(3, 0)]]
    assert positions == list(range(7))


def test_a_rerun_of_a_record_samples_with_the_same_seed() -> None:
    key = RequestKey(record=2, epoch=1)
    assert request_seed(7, key) == request_seed(7, key)
    assert request_seed(7, key) != request_seed(8, key)
    assert request_seed(7, key) != request_seed(7, RequestKey(record=2, epoch=2))


def test_without_shuffling_every_epoch_keeps_the_files_order() -> None:
    taken = keys(RequestStream(Records(), seed=3, shuffle=False), 10)
    assert [(key.epoch, key.record) for key in taken] == [(epoch, row) for epoch in (0, 1) for row in range(5)]
    assert keys(RequestStream(Records(), seed=3, shuffle=False, position=7), 3) == taken[7:]
