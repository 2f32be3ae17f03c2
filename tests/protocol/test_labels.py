"""Labels of a row: tail, descriptions, coordinates, end of turn."""

from __future__ import annotations

import numpy as np
import pytest

from protocol.contracts import IntArray
from protocol.errors import ContractError
from protocol.labels import RowLabels, RowSpans, label_row

IDS = (1, 2, 3, 4, 5, 6, 10, 7, 8, 20, 9, 0)
SPANS = RowSpans(prompt_len=5, prefix_len=3, train_len=6)
NONE = -100


def ids(values: tuple[int, ...] = IDS) -> IntArray:
    return np.asarray(values, dtype=np.int32)


def label(spans: RowSpans = SPANS, **options: object) -> RowLabels:
    bins = np.asarray([{10: 10, 20: 20}.get(value, -1) for value in IDS], dtype=np.int32)
    return label_row(ids(), bins, spans, **options)  # type: ignore[arg-type]


def test_the_worked_example_holds() -> None:
    row = label(prefix_targets=[(1, 123)], supervise_eos=False)
    assert row.labels.tolist() == [NONE] * 8 + [8, NONE, 9, NONE]
    assert row.coord_positions.tolist() == [9, 6]
    assert row.coord_bins.tolist() == [20, 123]
    assert row.coord_in_prefix.tolist() == [False, True]


def test_the_end_of_turn_behind_the_tail_is_supervised() -> None:
    assert label().labels.tolist() == [NONE] * 8 + [8, NONE, 9, 0]


def test_description_tokens_get_no_label_but_coordinates_stay_targets() -> None:
    row = label(tail_ignored=[0, 1, 50])
    assert row.labels.tolist() == [NONE] * 10 + [9, 0]
    assert row.coord_positions.tolist() == [9]


def test_prefix_targets_outside_the_prefix_are_passed_over() -> None:
    assert label(prefix_targets=[(-1, 5), (3, 6)]).coord_positions.tolist() == [9]


@pytest.mark.parametrize("at", [2, 4])
def test_a_prefix_target_behind_the_answer_is_refused(at: int) -> None:
    with pytest.raises(ContractError, match="outside the answer"):
        label(RowSpans(prompt_len=5, prefix_len=6, train_len=2), prefix_targets=[(at, 5)])


def test_the_first_token_of_prompt_prefix_and_tail_counts_as_do_those_in_between() -> None:
    assert label(prefix_targets=[(0, 5), (2, 6)]).coord_positions.tolist() == [9, 5, 7]
    assert label(tail_ignored=[0, 2]).labels.tolist() == [NONE] * 11 + [0]
    row = label(RowSpans(prompt_len=1, prefix_len=0, train_len=2), supervise_eos=False)
    assert row.labels.tolist() == [NONE, 2, 3] + [NONE] * 9


def test_bin_0_is_a_coordinate() -> None:
    row = label_row(ids((1, 2, 3)), ids((-1, 0, -1)), RowSpans(prompt_len=1, prefix_len=0, train_len=1))
    assert (row.labels.tolist(), row.coord_positions.tolist(), row.coord_bins.tolist()) == ([NONE, NONE, 3], [1], [0])


@pytest.mark.parametrize(
    "spans",
    [
        RowSpans(prompt_len=0, prefix_len=3, train_len=6),
        RowSpans(prompt_len=12, prefix_len=0, train_len=1),
        RowSpans(prompt_len=5, prefix_len=0, train_len=0),
        RowSpans(prompt_len=5, prefix_len=-1, train_len=3),
    ],
)
def test_spans_that_leave_no_answer_are_refused(spans: RowSpans) -> None:
    with pytest.raises(ContractError, match=r"prompt_len|answer"):
        label(spans)


def test_a_tail_longer_than_the_row_is_labelled_up_to_its_end() -> None:
    assert label(RowSpans(prompt_len=5, prefix_len=3, train_len=60)).labels.tolist() == [NONE] * 8 + [8, NONE, 9, 0]
