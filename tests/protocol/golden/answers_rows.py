"""Areas about supervision: labels, labels_packed, loss, compute_loss."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from protocol.contracts import IntArray
from protocol.errors import ContractError
from protocol.labels import RowLabels, RowSpans, label_row
from protocol.metrics import RolloutTotals
from protocol.segments import SegmentStats

Case = Mapping[str, Any]

_TOP_K = 5
"""`candidate_top_k` of the runbook's template, with which the events of the cases were logged."""


def _label(case: Case, ids: list[int], meta: Mapping[str, Any], coord_ids: Mapping[int, int]) -> RowLabels:
    positions, bins = meta.get("prefix_coord_pos", []), meta.get("prefix_coord_target_bins", [])
    if len(positions) != len(bins):
        raise ContractError(f"{len(positions)} prefix positions and {len(bins)} bins; they belong together in pairs")
    return label_row(
        np.asarray(ids, dtype=np.int32),
        np.asarray([coord_ids.get(token_id, -1) for token_id in ids], dtype=np.int32),
        RowSpans(prompt_len=meta["prompt_len"], prefix_len=meta["prefix_len"], train_len=meta["train_len"]),
        prefix_targets=list(zip(positions, bins, strict=True)),
        tail_ignored=meta.get("tail_ignore_pos", []),
        supervise_eos=case.get("settings", {}).get("supervise_eos", True),
    )


def _coord_ids(given: Mapping[str, Any]) -> dict[int, int]:
    return {int(token_id): bin_ for token_id, bin_ in given["coord_ids_to_bin"].items()}


def _labels(case: Case) -> dict[str, Any]:
    given = case["input"]
    row = _label(case, given["input_ids"], given, _coord_ids(given))
    return {
        "labels": row.labels.tolist(),
        "coord_pos": row.coord_positions.tolist(),
        "coord_bins": row.coord_bins.tolist(),
        "coord_is_prefix": row.coord_in_prefix.tolist(),
    }


def _labels_packed(case: Case) -> dict[str, Any]:
    given = case["input"]
    rows, metas = given["input_ids"], given["meta"]
    labels = [np.full(len(row), -100, dtype=np.int32) for row in rows]
    places = []
    for row, part, meta in _parts(rows, metas):
        ids = rows[row][part]
        _check_prompt(ids, meta)
        found = _label(case, ids, meta, _coord_ids(given))
        labels[row][part] = found.labels
        places += [
            (row, part.start + position, bin_, in_prefix)
            for position, bin_, in_prefix in zip(
                found.coord_positions.tolist(), found.coord_bins.tolist(), found.coord_in_prefix.tolist(), strict=True
            )
        ]
    return {
        "labels": [row.tolist() for row in labels],
        "batch": [place[0] for place in places],
        "pos": [place[1] for place in places],
        "bins": [place[2] for place in places],
        "is_prefix": [place[3] for place in places],
    }


def _parts(rows: list[list[int]], metas: list[Mapping[str, Any]]) -> list[tuple[int, slice, Mapping[str, Any]]]:
    """(row, slice, metadata) of each segment: one per row, or all of them in a single packed row."""
    from learner.collate import split_packed

    if len(metas) == len(rows):
        return [(at, slice(0, len(row)), meta) for at, (row, meta) in enumerate(zip(rows, metas, strict=True))]
    if len(rows) != 1 or not metas:
        raise ContractError(f"{len(metas)} segments for {len(rows)} rows; one per row, or a single packed row")
    slices = split_packed(len(rows[0]), [meta.get("encoded_len") or 0 for meta in metas])
    return [(0, part, meta) for part, meta in zip(slices, metas, strict=True)]


def _check_prompt(ids: list[int], meta: Mapping[str, Any]) -> None:
    from learner.collate import check_prompt

    if meta.get("prompt_ids") is not None:
        check_prompt("golden", _ids(ids), _ids(meta["prompt_ids"]))


def _ids(values: list[int]) -> IntArray:
    return np.asarray(values, dtype=np.int32)


def _loss(case: Case) -> dict[str, float]:
    import torch

    from learner.losses import coord_target
    from learner.settings import LossSettings
    from tests.learner.plain_loss import terms_of_full_logits

    given, expected = case["input"], case["expected"]
    if "bin" in given:
        target = coord_target(given["bin"], given["sigma"], given["truncate"], given["K"]).tolist()
        return {name: target[int(name[1:])] for name in expected if re.fullmatch(r"q\d+", name)}
    coord, full = _logits(case)
    settings = LossSettings(
        target_sigma=given["sigma"], target_truncate=given["truncate"], temperature=given["temperature"]
    )
    full_logits = None if full is None else torch.tensor([full])
    terms = terms_of_full_logits(torch.tensor([coord]), torch.tensor([given["target_bin"]]), full_logits, settings)
    answer = {"soft_ce": float(terms.soft_ce), "w1": float(terms.w1)}
    return answer if terms.gate is None else {**answer, "gate": float(terms.gate)}


def _logits(case: Case) -> tuple[list[float], list[float] | None]:
    """Coordinate and full logits; `see note` means what the name says: a spike over zeros, and 200 more zeros."""
    given = case["input"]
    if given["coord_logits"] != "see note":
        full = given["full_logits"]
        return _floats(given["coord_logits"]), None if full is None else _floats(full)
    spike = re.search(r"spike ([\d.]+) at (?:bin )?(\d+)", case["name"])
    assert spike is not None, case["name"]
    coord = [0.0] * given["K"]
    coord[int(spike[2])] = float(spike[1])
    return coord, coord + [0.0] * 200


def _floats(values: list[float | str]) -> list[float]:
    return [float(value) for value in values]


def _compute_loss(case: Case) -> dict[str, Any]:
    """One micro-batch: rows labelled, the plain loss over full logits, and the event's metrics."""
    import torch

    from learner.settings import LossSettings
    from tests.learner.plain_loss import row_loss

    given, metas = case["input"], case["input"]["meta"]
    numbers = _compute_loss_numbers(case["name"])
    coord_ids = {token_id: token_id for token_id in range(1000)}
    row = _label(case, given["input_ids"], metas[0], coord_ids)
    _check_prompt(given["input_ids"], metas[0])
    logits = torch.zeros(len(given["input_ids"]), int(numbers["V"]))
    for position, token_id, value in re.findall(r"\(pos(\d+)->id(\d+)\)=(-?[\d.]+)", case["name"]):
        logits[int(position), int(token_id)] = float(value)
    loss, sums = row_loss(
        logits,
        torch.from_numpy(row.labels.astype(np.int64)),
        torch.from_numpy(row.coord_positions.astype(np.int64)),
        torch.from_numpy(row.coord_bins.astype(np.int64)),
        torch.from_numpy(row.coord_in_prefix),
        torch.arange(1000),
        LossSettings(target_sigma=numbers["sigma"], target_truncate=numbers["truncate"]),
    )
    logged = RolloutTotals.of(_stats(meta) for meta in metas).rollout_metrics(_TOP_K)
    logged |= {
        "loss/ce": sums.ce_sum / sums.ce_tokens,
        "loss/coord": sums.coord_sum / sums.coord_targets,
        "loss/coord_prefix": sums.coord_prefix_sum / max(1, sums.coord_prefix_count),
        "loss/coord_tail": sums.coord_tail_sum / max(1, sums.coord_tail_count),
        "time/forward_s": 0.0,
        "time/mask_build_s": 0.0,
    }
    ours = set(logged) - set(case["expected"]["logged"])  # SPEC A20 and counts that the reference did not log
    added = ("segments", "cut_fallback", "duplicates", "duplicate_rate", "repeat_terminated")
    assert ours <= {f"rollout/{name}" for name in added}, ours
    return {"total": float(loss), "logged": {name: value for name, value in logged.items() if name not in ours}}


def _compute_loss_numbers(name: str) -> dict[str, float]:
    found = {key: re.search(pattern, name) for key, pattern in _NUMBERS.items()}
    return {key: float(match[1]) for key, match in found.items() if match is not None}


_NUMBERS = {"V": r"V=(\d+)", "sigma": r"sigma ([\d.]+)", "truncate": r"truncate ([\d.]+)"}


def _stats(meta: Mapping[str, Any]) -> SegmentStats:
    matched = meta["matched_for_supervision"]
    return SegmentStats(
        gt_objects=meta["gt_objects"],
        valid_predictions=meta["valid_pred_objects"],
        matched_pairs=meta["matched_maskiou_count"],
        matched_for_supervision=matched,
        excluded_from_supervision=meta["excluded_from_supervision"],
        fn_appended=meta["fn_count"],
        gating_rejections=meta["gating_rejections"],
        matched_maskiou_sum=meta["matched_maskiou_sum"],
        parse_dropped_invalid=meta["parse_dropped_invalid"],
        parse_truncated=int(meta["parse_truncated"]),
        prefix_coord_targets=len(meta["prefix_coord_pos"]),
        tail_ignored=len(meta["tail_ignore_pos"]),
        prompt_len=meta["prompt_len"],
        rollout_len=meta["rollout_len"],
        prefix_len=meta["prefix_len"],
        train_len=meta["train_len"],
        encoded_len=meta["encoded_len"],
        decode_mode=meta["decode_mode"],
    )


AREAS = {"labels": _labels, "labels_packed": _labels_packed, "loss": _loss, "compute_loss": _compute_loss}
