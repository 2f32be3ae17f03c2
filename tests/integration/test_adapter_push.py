"""`vllm.enable_lora` on real engines: the adapter travels, and answers come from it (SPEC A18)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deploy.evaluation import evaluate_checkpoint
from deploy.launch import train
from protocol.config import RunConfig
from tests.integration.conftest import read_lines

pytestmark = [pytest.mark.integration, pytest.mark.long]
LORA = (
    "tuner.train_type=lora",
    "tuner.lora_rank=4",
    "custom.extra.rollout_matching.vllm.enable_lora=true",
    "training.learning_rate=1e-2",
)


def test_engines_answer_with_the_adapter_that_was_pushed(demo_config: Callable[..., RunConfig], tmp_path: Path) -> None:
    summary = train(demo_config(*LORA))

    publishes = [event for event in read_lines(tmp_path / "run" / "events.jsonl") if event["kind"] == "publish"]
    assert [event["version"] for event in publishes] == [0, 1, 2]
    for event in publishes:
        assert [engine["name"] for engine in event["engines"]] == ["actor-0"]
    steps = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "loss/ce" in line]
    merged = tmp_path / "run" / "checkpoint-2" / "merged"
    whole = sum(path.stat().st_size for path in merged.glob("*.safetensors"))
    assert all(0 < line["sync/bytes"] < whole / 4 for line in steps), "only the adapter travels"

    # The engine kept its base weights, so a change comes from the adapter; and it is the one that was trained: merging
    # it gives the same answers, up to the order of additions.
    names = ("eval_rollout_pred_objects", "eval_rollout_matched", "eval_rollout_f1")
    served = {name: summary["after"][name] for name in names}
    assert served != {name: summary["before"][name] for name in names}
    fresh = evaluate_checkpoint(demo_config(f"model.model={merged}"))
    assert served == pytest.approx({name: fresh[name] for name in names}, rel=0.02)
