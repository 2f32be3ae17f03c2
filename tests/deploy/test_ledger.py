"""What a ledger proves, and that it refuses to prove what is not there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from actors.loop import TrainedWindow
from deploy.ledger import NAME, Ledger, LedgerLine, check_ledger, read_ledger
from protocol.contracts import RequestKey
from protocol.errors import ConfigError
from protocol.segments import SegmentMeta, SegmentStats


def segment(record: int, epoch: int = 0, version: int = 0) -> SegmentMeta:
    return SegmentMeta(
        key=RequestKey(record=record, epoch=epoch),
        length=10,
        num_bytes=1,
        first_version=version,
        last_version=version + 1,
        stats=SegmentStats(),
    )


def test_a_window_is_on_disk_at_once_with_its_keys_in_order(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write(TrainedWindow(first_step=3, last_step=4, version=2, segments=(segment(7, version=1), segment(2, 1))))
    assert read_ledger(tmp_path) == [
        LedgerLine(3, 4, 2, (0, 2), ("record=7/epoch=0/rollout=0", "record=2/epoch=1/rollout=0"))
    ]
    ledger.close()


def test_a_window_is_synced_before_a_checkpoint_can_cover_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    monkeypatch.setattr(os, "fsync", lambda handle: sizes.append(os.fstat(handle).st_size))
    ledger = Ledger(tmp_path)
    ledger.write(TrainedWindow(first_step=1, last_step=1, version=0, segments=(segment(1),)))
    ledger.close()
    assert sizes == [(tmp_path / NAME).stat().st_size]


def test_a_run_without_a_ledger_has_trained_nothing(tmp_path: Path) -> None:
    check_ledger(read_ledger(tmp_path), num_steps=0, num_trained=0)


def test_a_line_that_was_not_written_whole_is_named(tmp_path: Path) -> None:
    (tmp_path / NAME).write_text('{"steps": [1, 2]}\n')
    with pytest.raises(ConfigError, match=r"ledger\.jsonl:1 is no line of a ledger"):
        read_ledger(tmp_path)


def window(first: int, last: int, *keys: str) -> LedgerLine:
    return LedgerLine(first, last, 0, (0, 0), keys)


def test_whole_windows_that_train_each_rollout_once_are_accepted() -> None:
    check_ledger([window(1, 2, "a", "b"), window(3, 3, "c", "d")], num_steps=3, num_trained=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w[1:], "a window has steps 3 to 4 where step 1 follows"),
        (lambda w: [w[0], window(3, 2), w[1]], "a window has steps 3 to 2 where step 3 follows"),
        (lambda w: w[:1], "it ends at step 2, the checkpoint was written at step 4"),
        (lambda w: [*w, window(5, 6, "e", "f")], "it ends at step 6, the checkpoint was written at step 4"),
        (lambda w: [w[0], w[1]._replace(keys=("c", "a"))], "1 rollouts were trained more than once, the first is a"),
        (lambda w: [w[0], w[1]._replace(keys=("c",))], "it holds 3 trained rollouts, the checkpoint 4"),
    ],
)
def test_a_ledger_that_does_not_fit_its_checkpoint_is_refused_with_the_numbers(
    change: Callable[[list[LedgerLine]], list[LedgerLine]], message: str
) -> None:
    windows = [window(1, 2, "a", "b"), window(3, 4, "c", "d")]
    with pytest.raises(ConfigError, match=message):
        check_ledger(change(windows), num_steps=4, num_trained=4)
