"""Areas about geometry: mask_iou, match, prefix_targets, sinkhorn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from protocol.contracts import Shape
from protocol.geometry import mask_iou
from protocol.matching import MatchSettings, match
from protocol.transport import TransportSettings, project, slot_bins

Case = Mapping[str, Any]


def to_shape(kind: str, bins: list[int]) -> Shape:
    assert kind in ("bbox_2d", "poly"), kind
    return Shape("bbox_2d" if kind == "bbox_2d" else "poly", tuple(bins))


def match_settings(values: Mapping[str, Any]) -> MatchSettings:
    """From a case's short names or a run file's long ones; what is absent keeps its default."""
    names = {
        "top_k": "candidate_top_k",
        "candidate_top_k": "candidate_top_k",
        "gate": "maskiou_gate",
        "maskiou_gate": "maskiou_gate",
        "resolution": "maskiou_resolution",
        "maskiou_resolution": "maskiou_resolution",
        "fp_cost": "fp_cost",
        "fn_cost": "fn_cost",
    }
    return MatchSettings(**{names[key]: value for key, value in values.items() if key in names})


def _mask_iou(case: Case) -> float:
    given = case["input"]
    return mask_iou(
        to_shape(given["pred_kind"], given["pred"]), to_shape(given["gt_kind"], given["gt"]), given["resolution"]
    )


def _match(case: Case) -> dict[str, Any]:
    given = case["input"]
    result = match(
        [to_shape(*item) for item in given["preds"]],
        [to_shape(*item) for item in given["gts"]],
        match_settings(given),
    )
    return {
        "matched_pairs": [[pair.prediction, pair.ground_truth] for pair in result.pairs],
        "fn_gt_indices": list(result.false_negatives),
        "fp_pred_indices": list(result.false_positives),
        "gating_rejections": result.gating_rejections,
        "matched_maskiou_sum": float(sum(pair.mask_iou for pair in result.pairs)),
        "matched_maskiou_count": len(result.pairs),
    }


def _prefix_targets(case: Case) -> list[int]:
    given = case["input"]
    settings = TransportSettings(given["ot_cost"], float(given["ot_epsilon"]), given["ot_iters"])
    return list(slot_bins(to_shape(*given["pred"]), to_shape(*given["gt"]), settings))


def _sinkhorn(case: Case) -> list[list[float]]:
    given = case["input"]
    settings = TransportSettings(given["cost"], float(given["epsilon"]), given["iters"])
    points: list[list[float]] = project(np.float32(given["pred"]), np.float32(given["gt"]), settings).tolist()
    return points


AREAS = {"mask_iou": _mask_iou, "match": _match, "prefix_targets": _prefix_targets, "sinkhorn": _sinkhorn}
