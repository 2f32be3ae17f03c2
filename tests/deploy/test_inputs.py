"""What the run file says reaches the loop, the planner and the files of records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deploy.inputs import EVALUATED_KEPT, loop_settings, planner, record_files, training_records
from protocol.config import RunConfig, config_from_mapping
from tests.protocol.test_config import BOTH_PARTS, minimal


def run(matching: dict[str, Any] | None = None, custom: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    values = minimal()
    values["custom"] |= custom or {}
    values["custom"]["extra"]["rollout_matching"] |= matching or {}
    return config_from_mapping(values | sections)


@pytest.mark.parametrize(
    ("config", "name", "value", "otherwise"),
    [
        (run(training={"packing": True, "packing_min_fill_ratio": 0.5}), "min_fill", 0.5, 0.65),
        (run(training={"packing": True}, global_max_length=100), "capacity", 100, None),
        (run(training={"dataloader_drop_last": False, "effective_batch_size": 8}), "max_steps", 13, 3),
        (run(training={"effective_batch_size": 8}), "batch_size", 8, 32),
        (run({"rollout_buffer": {"enabled": True, "m_steps": 4}}), "m_steps", 4, 1),
        (run(rollout={"max_staleness": 2}), "max_staleness", 2, 0),
        (run({"candidate_top_k": 3}), "top_k", 3, 10),
        (run({"desc_monitor": {"enabled": True}}), "desc_enabled", True, False),
        (run({"desc_monitor": {"every_steps": 7}}), "desc_every", 7, 5),
        (run(training={"packing_drop_last": False}), "packing_drop_last", False, True),
        (run(training={"save_last_epoch": False}), "save_last", False, True),
        (run(rollout={"record_bytes": 0}), "num_eval_traced", 0, EVALUATED_KEPT),
        (run(sync={"debug_skip_publish": True}), "skip_publish", True, False),
        (run(custom={"val_jsonl": "v.jsonl"}, training={"eval_steps": 9}), "eval_steps", 9, 0),
        (
            run(training={"packing": True, "packing_carry": True}, rollout={"max_staleness": 1}),
            "packing_carry",
            True,
            False,
        ),
        (
            run(
                {"offload": BOTH_PARTS},
                cluster={"colocate": True, "gpus_per_actor": 0.5, "gpus_per_learner": 0.5},
            ),
            "takes_turns",
            True,
            False,
        ),
    ],
)
def test_a_setting_of_the_run_file_is_the_loops(config: RunConfig, name: str, value: Any, otherwise: Any) -> None:
    assert getattr(loop_settings(config, 100), name) == value
    assert getattr(loop_settings(run(training={"logging_steps": 5}), 100), name) == otherwise


def test_windows_are_planned_for_every_rank_as_the_run_file_says() -> None:
    two = {"num_learners": 2}
    rows = planner(run(training={"packing": False, "per_device_train_batch_size": 2}, cluster=two))
    assert rows([5, 5, 5, 5, 5]).micro_batches == (((0, 2), (1, 3)), ((4,), ()))
    packs = planner(run(training={"packing": True}, cluster=two, global_max_length=10))
    assert packs([6, 3, 2, 2]).micro_batches == (((0,), (1, 2, 3)),)
    for fill, carried in ((0.65, (2,)), (0.3, ())):
        carry = {"packing": True, "packing_carry": True, "packing_min_fill_ratio": fill}
        plan = planner(run(training=carry, rollout={"max_staleness": 1}, cluster=two, global_max_length=10))
        assert plan([9, 8, 7]).carried == carried


def test_training_records_are_the_first_so_many_with_their_objects_in_the_order_of_the_seed(tmp_path: Path) -> None:
    boxes = [{"bbox_2d": [x, x, x + 50, x + 50], "desc": f"{x}"} for x in range(0, 900, 100)]
    record = {"images": ["x.png"], "width": 64, "height": 64, "objects": boxes}
    (tmp_path / "t.jsonl").write_text(f"{json.dumps(record)}\n" * 5)
    data = {"train_jsonl": str(tmp_path / "t.jsonl"), "train_sample_limit": 3}
    first, again, other = (
        training_records(run(custom=data | {"object_ordering": "random"}, training={"seed": seed} | {"max_steps": 1}))
        for seed in (1, 1, 2)
    )
    assert len(first) == 3
    assert first[0] == again[0] != other[0]
    assert [truth.desc for truth in training_records(run(custom=data, training={"max_steps": 1}))[0].objects] == [
        box["desc"] for box in boxes
    ]
    assert [len(file) for file in record_files(run(custom=data, training={"max_steps": 1}))] == [5]
