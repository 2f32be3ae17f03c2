"""Evaluation: what becomes of validation records that cannot be answered."""

from __future__ import annotations

import pytest

from actors import evaluator
from protocol.errors import DataFailure
from tests.actors.test_controller import build


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
