"""Evaluation: what is sent, and what becomes of validation records that cannot be answered."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors import evaluator
from protocol.contracts import RolloutRequest
from protocol.errors import DataFailure
from protocol.unread import UnreadRequest
from tests.actors.test_controller import build, lines


def test_records_are_sent_as_lines_that_nobody_has_parsed_the_first_of_them_traced() -> None:
    requests = evaluator._requests(lines(7, 3, 7), version=2, num_traced=2)
    assert all(isinstance(request, UnreadRequest) for request in requests)
    assert [str(request.key) for request in requests] == [
        "record=7/epoch=-1/rollout=0",
        "record=3/epoch=-1/rollout=0",
        "record=7/epoch=-1/rollout=1",
    ]
    assert [(request.traced, request.min_version) for request in requests] == [(True, 2), (True, 2), (False, 2)]


def test_what_an_actor_reads_of_a_line_is_the_request_that_was_sent() -> None:
    line = replace(lines(7)[0], text=b'{"images": ["x.png"], "width": 8, "height": 8, "objects": []}')
    for sent in evaluator._requests([line, line], version=2, num_traced=1):
        assert sent.read() == RolloutRequest(
            key=sent.key, record=line.parse(), seed=0, min_version=2, traced=sent.key.rollout == 0
        )


def test_all_validation_records_that_cannot_be_answered_are_told_at_once(caplog: pytest.LogCaptureFixture) -> None:
    loop = build(validation=9, fails=lambda answered: answered in (2, 3, 5, 8))
    with pytest.raises(DataFailure) as ended:
        loop.controller.run()
    assert str(ended.value) == (
        "4 of 9 validation records failed, and a score over fewer would not compare; mend them, or take them out of "
        f"custom.val_jsonl: {'; '.join(['ImageError: gone'] * 3)}; ... (the log names them all)"
    )
    assert [message for message in caplog.messages if "validation record " in message] == [
        f"validation record {9 - answered}: ImageError: gone" for answered in (2, 3, 5, 8)
    ], "the pool answers the newest first"
    assert len(loop.observer.answered) == 5


def test_an_evaluation_ends_early_where_so_many_fail_that_it_is_not_the_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evaluator, "ENOUGH", 2)
    loop = build(validation=9, fails=lambda answered: answered > 2)
    with pytest.raises(DataFailure, match=r"^2 of 4 validation records failed \(5 more were not waited for\), and"):
        loop.controller.run()
