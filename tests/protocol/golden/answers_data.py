"""Areas about data and settings: dataset_serialize, gt_extract, pixel_to_bin, config, monitor_dump."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from protocol.config.base import Section
from protocol.config.custom import CustomConfig
from protocol.config.rollout_matching import MonitorDumpConfig, RolloutMatchingConfig
from protocol.config.training import TrainingConfig
from protocol.norm1000 import to_bins
from protocol.vocab import coord_value
from tests.protocol.golden.payloads import SerializedRecord, extract_truths, serialize_record, user_content

Case = Mapping[str, Any]

_PACKING_NAMES = {"packing_enabled": "packing"}
_SECTIONS: dict[str, type[Section]] = {
    "custom": CustomConfig,
    "training": TrainingConfig,
    "rollout_matching": RolloutMatchingConfig,
}
_NUM_STEPS = 21


def _dataset_serialize(case: Case) -> dict[str, Any]:
    given = case["input"]
    record = serialize_record(
        given["record"],
        coord_tokens=given.get("coord_tokens_enabled", True),
        ordering=given.get("object_ordering", "sorted"),
    )
    return {
        "assistant_text": record.text,
        "assistant_payload": record.payload,
        "user_content": user_content(given["record"]["images"], given.get("user_prompt", "PROMPT")),
        "objects_meta": _objects_meta(record),
    }


def _objects_meta(record: SerializedRecord) -> dict[str, Any] | None:
    """The reference's list form of the same objects; None without geometry."""
    located = [item for item in record.objects if item.geometry is not None]
    if not located:
        return None
    return {
        "ref": [item.desc for item in located],
        "bbox": [
            [coord_value(value) if isinstance(value, str) else value for value in item.values] for item in located
        ],
        "image_id": [0] * len(located),
    }


def _gt_extract(case: Case) -> list[dict[str, Any]]:
    return [
        {
            "index": truth.index,
            "geom_type": truth.shape.geometry,
            "points": list(truth.shape.bins),
            "desc": truth.desc,
        }
        for truth in extract_truths(case["input"]["assistant_payload"])
    ]


def _pixel_to_bin(case: Case) -> list[int]:
    given = case["input"]
    return list(to_bins(given["values"], given["width"], given["height"]))


def _config(case: Case) -> dict[str, Any]:
    """Each key of the input is a section, a setting of `training`, or one of `rollout_matching`."""
    sections: dict[str, dict[str, Any]] = {"custom": {}, "training": {}, "rollout_matching": {}}
    for name, value in case["input"].items():
        if name in sections:
            sections[name] |= value
        elif name in TrainingConfig.model_fields or name in _PACKING_NAMES:
            sections["training"][_PACKING_NAMES.get(name, name)] = value
        else:
            sections["rollout_matching"][name] = value
    built: dict[str, Any] = {}
    for name, values in sections.items():
        if values:
            built |= _SECTIONS[name].model_validate(values).model_dump()
    return {name: value for name, value in built.items() if name in case["expected"]}


def _monitor_dump(case: Case) -> list[int]:
    given = case["input"]
    config = MonitorDumpConfig.model_validate(given["cfg"])
    logging = {name: given[name] for name in ("logging_steps", "logging_first_step")}
    dumped: list[int] = []
    for step in range(_NUM_STEPS):
        if config.due(step, len(dumped), **logging):
            dumped.append(step)
    return dumped


AREAS = {
    "dataset_serialize": _dataset_serialize,
    "gt_extract": _gt_extract,
    "pixel_to_bin": _pixel_to_bin,
    "config": _config,
    "monitor_dump": _monitor_dump,
}
