"""Segments into tensors: positions, targets, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from learner.collate import Vision, check_prompt, collate_nothing, collate_packed, collate_padded, split_packed
from protocol.contracts import RequestKey
from protocol.errors import ContractError, PromptMismatchError
from protocol.segments import IGNORE_INDEX, Segment

ROOT = Path(__file__).resolve().parents[2]
HOMES = (ROOT / "tests/protocol/golden/cases.json", ROOT.parent / "shared/cases/golden.json")
Coord = tuple[int, int, bool]
IMAGE = Vision(torch.ones(2, 4), torch.tensor([[1, 1, 2]]))
NO_IMAGE = Vision(torch.zeros(0, 4), torch.zeros(0, 3, dtype=torch.long))


def golden(area: str) -> list[Any]:
    home = next((path for path in HOMES if path.is_file()), None)
    if home is None:
        return [pytest.param({}, marks=pytest.mark.skip(reason="no golden cases beside the tests or the checkout"))]
    return [pytest.param(case, id=case["id"]) for case in json.loads(home.read_text()) if case["area"] == area]


def segment(number: int, ids: Sequence[int], labelled: Sequence[int], coords: Sequence[Coord]) -> Segment:
    """`coords` are (position, bin, in the prefix)."""
    labels = np.full(len(ids), IGNORE_INDEX, np.int32)
    labels[list(labelled)] = np.asarray(ids, np.int32)[list(labelled)]
    return Segment(
        key=RequestKey(number),
        input_ids=np.asarray(ids, np.int32),
        labels=labels,
        coord_positions=np.array([position for position, _, _ in coords], np.int32),
        coord_bins=np.array([bin_ for _, bin_, _ in coords], np.int32),
        coord_in_prefix=np.array([inside for _, _, inside in coords], np.bool_),
        prompt_len=1,
        images=(),
        first_version=0,
        last_version=0,
    )


def count_up(ids: Tensor, _grid: Tensor) -> Tensor:
    """Stands for the model's rule: three equal rows that start at 100."""
    return torch.arange(100, 100 + len(ids)).expand(3, -1)


ONE = segment(0, [1, 2, 3, 4, 5], [3], [(4, 20, False), (2, 123, True)])
TWO = segment(1, [6, 7, 8], [2], [(1, 999, True)])


def test_every_position_row_restarts_with_each_segment() -> None:
    batch = collate_packed([ONE, TWO], [NO_IMAGE] * 2, count_up)
    assert batch.position_ids[0].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert batch.position_ids[3].tolist() == [[100, 101, 102, 103, 104, 100, 101, 102]]
    assert batch.attention_mask is None


def test_targets_move_with_their_segment_and_are_read_one_position_before() -> None:
    batch = collate_packed([ONE, TWO], [NO_IMAGE] * 2, count_up)
    assert batch.coord_positions.tolist() == [4, 2, 6]
    assert batch.coord_bins.tolist() == [20, 123, 999]
    assert batch.coord_in_prefix.tolist() == [False, True, True]
    assert batch.ce_ids().tolist() == [4, 8]
    assert batch.supervised_rows().tolist() == [2, 6, 3, 1, 5]
    assert batch.num_tokens == 8


def test_padded_rows_keep_the_order_of_packed_targets() -> None:
    batch = collate_padded([ONE, TWO], [NO_IMAGE] * 2, count_up)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 0, 0]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1] * 5, [1, 1, 1, 0, 0]]
    assert batch.position_ids[0].tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 0]]
    assert batch.position_ids[3].tolist() == [[100, 101, 102, 103, 104], [100, 101, 102, 0, 0]]
    assert batch.coord_batch.tolist() == [0, 0, 1]
    assert batch.ce_ids().tolist() == [4, 8]
    assert batch.supervised_rows().tolist() == [2, 6, 3, 1, 5]


def test_a_rank_without_a_segment_gets_a_forward_that_supervises_nothing() -> None:
    batch = collate_nothing([5, 6, 7], IMAGE, count_up)
    assert batch.input_ids.tolist() == [[5, 6, 7]]
    assert batch.position_ids[:2].tolist() == [[[0, 1, 2]], [[100, 101, 102]]]
    assert (batch.segment_lengths, len(batch.pixel_values)) == ((3,), 2), "through the vision tower, too"
    assert (batch.ce_ids().tolist(), batch.supervised_rows().tolist()) == ([], [])
    assert (batch.keys, batch.num_tokens) == ((), 0), "nothing is counted, and no record named"


@pytest.mark.parametrize("collate", [collate_packed, collate_padded])
def test_a_batch_moves_with_all_its_tensors_and_only_its_pixels_change_their_dtype(collate: Any) -> None:
    batch = collate([ONE, TWO], [IMAGE] * 2, count_up)
    moved = batch.to(torch.device("meta"), torch.bfloat16)
    for field in fields(batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(before, Tensor):
            dtype = torch.bfloat16 if field.name == "pixel_values" else before.dtype
            assert (after.device.type, after.dtype, after.shape) == ("meta", dtype, before.shape), field.name
        else:
            assert after == before, field.name


def test_segments_that_do_not_fit_are_refused_with_their_lengths() -> None:
    with pytest.raises(ContractError, match=r"\[5, 3\] tokens add up to 8, more than the row's 7"):
        collate_packed([ONE, TWO], [NO_IMAGE] * 2, count_up, capacity=7)
    with pytest.raises(ContractError, match="must all be positive"):
        split_packed(9, [3, 0])


def test_a_prompt_mismatch_names_lengths_and_the_first_difference() -> None:
    with pytest.raises(PromptMismatchError, match=r"record=7/.*position 1 \(learner 9, engine 2\)"):
        check_prompt(RequestKey(7), np.array([1, 2, 3], np.int32), np.array([1, 9, 3], np.int32))
    with pytest.raises(
        PromptMismatchError, match=r"to 4 ids, the engine to 2, .* position 2 \(learner 3, engine None\)"
    ):
        check_prompt(RequestKey(7), np.array([1, 2], np.int32), np.array([1, 2, 3, 4], np.int32))
    answer = np.array([1, 2, 3, 9], np.int32)
    with pytest.raises(
        PromptMismatchError, match=r"to 2 ids, the engine to 3, .* position 2 \(learner None, engine 3\)"
    ):
        check_prompt(RequestKey(7), answer, answer[:2], prompt_len=3)
    check_prompt(RequestKey(7), answer, answer[:3], prompt_len=3)


@pytest.mark.parametrize("case", golden("labels_packed"))
def test_golden_packed_labels(case: dict[str, Any]) -> None:
    if "error" in case["expected"]:
        with pytest.raises(ValueError, match="differ first" if "prompt" in case["name"] else "more than the row"):
            _pack_golden(case)
        return
    batch = _pack_golden(case)
    expected = case["expected"]
    assert batch.labels.tolist() == expected["labels"]
    assert batch.coord_batch.tolist() == expected["batch"]
    assert batch.coord_positions.tolist() == expected["pos"]
    assert batch.coord_bins.tolist() == expected["bins"]
    assert batch.coord_in_prefix.tolist() == expected["is_prefix"]


def _pack_golden(case: dict[str, Any]) -> Any:
    """Cuts the case's row into segments with their labels, then packs them again."""
    from protocol.labels import RowSpans, label_row

    row, metas = np.array(case["input"]["input_ids"][0], np.int32), case["input"]["meta"]
    bins = {int(token): bin_ for token, bin_ in case["input"]["coord_ids_to_bin"].items()}
    places = split_packed(len(row), [meta["encoded_len"] for meta in metas])
    segments = []
    for number, (place, meta) in enumerate(zip(places, metas, strict=True)):
        ids = row[place]
        check_prompt(number, ids, np.array(meta["prompt_ids"], np.int32))
        made = label_row(
            ids,
            np.array([bins.get(int(token), -1) for token in ids], np.int32),
            RowSpans(prompt_len=meta["prompt_len"], prefix_len=meta["prefix_len"], train_len=meta["train_len"]),
            prefix_targets=list(zip(meta["prefix_coord_pos"], meta["prefix_coord_target_bins"], strict=True)),
            supervise_eos=case["settings"]["supervise_eos"],
        )
        segments.append(
            Segment(
                key=RequestKey(number),
                input_ids=ids,
                labels=made.labels,
                coord_positions=made.coord_positions,
                coord_bins=made.coord_bins,
                coord_in_prefix=made.coord_in_prefix,
                prompt_len=meta["prompt_len"],
                images=(),
                first_version=0,
                last_version=0,
            )
        )
    return collate_packed(segments, [NO_IMAGE] * len(segments), count_up)
