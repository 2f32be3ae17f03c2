"""What users write as DeepSpeed's JSON, and what DeepSpeed gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from learner.deepspeed_json import OWNED, deepspeed_config, offloads_optimizer, read_json
from protocol.errors import ConfigError
from tests.learner import tiny

CPU = {"device": "cpu", "pin_memory": True}


def test_auto_and_absent_values_of_deepspeeds_json_are_filled_in() -> None:
    given = {
        "train_batch_size": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "overlap_comm": True},
        "gradient_clipping": "auto",
    }
    found = deepspeed_config(tiny.settings(Path("x"), torch_dtype="bfloat16", deepspeed=given))
    assert found["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert found["bf16"]["enabled"] is True
    assert (found["gradient_clipping"], found["train_micro_batch_size_per_gpu"]) == (0.0, 1)
    assert found["gradient_accumulation_steps"] == 1
    assert "train_batch_size" not in found


@pytest.mark.parametrize("key", sorted(OWNED))
def test_what_another_setting_decides_may_not_be_repeated_in_deepspeeds_json(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"deepspeed\.config: {key} is set to 5"):
        deepspeed_config(tiny.settings(Path("x"), deepspeed={key: 5}))


def test_an_optimizer_that_is_only_named_is_the_one_that_is_used_anyway() -> None:
    automatic = {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"}}
    assert "optimizer" not in deepspeed_config(tiny.settings(Path("x"), deepspeed={"optimizer": automatic}))
    for other in ({"type": "Adam"}, {"type": "AdamW", "params": {"lr": 1e-4}}):
        with pytest.raises(ConfigError, match=r"deepspeed\.config: optimizer is set to .*training\.learning_rate"):
            deepspeed_config(tiny.settings(Path("x"), deepspeed={"optimizer": other}))


def test_what_agrees_with_the_other_settings_is_accepted_and_null_is_nothing() -> None:
    assert read_json({"bf16": {"enabled": True}}, "bfloat16") == {"bf16": {"enabled": True}}
    assert read_json(
        {"zero_optimization": {"stage": 2, "offload_param": None}}, "bfloat16", ("model", "optimizer")
    ) == {"zero_optimization": {"stage": 2}}


def test_the_optimizer_is_in_host_memory_where_the_json_says_cpu() -> None:
    assert offloads_optimizer({"zero_optimization": {"stage": 2, "offload_optimizer": CPU}})
    assert not offloads_optimizer({"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "none"}}})
    assert not offloads_optimizer({})


def test_details_of_a_16_bit_dtype_are_kept() -> None:
    given = {"bf16": {"enabled": "auto", "immediate_grad_update": True}, "fp16": {"enabled": "auto"}}
    found = deepspeed_config(tiny.settings(Path("x"), torch_dtype="bfloat16", deepspeed=given))
    assert found["bf16"] == {"enabled": True, "immediate_grad_update": True}
    assert not found["fp16"].get("enabled")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"bf16": {"enabled": True}}, "bf16.enabled is true but model.torch_dtype is float32"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is true, and nothing is trained in float16"),
        ({"zero_optimization": {"offload_optimizer": CPU}}, "zero_optimization.offload_optimizer needs stage 1 or 2"),
        ({"zero_optimization": {"stage": 2, "offload_param": CPU}}, "zero_optimization.offload_param needs stage 3"),
        (
            {"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "nvme", "nvme_path": "/fast"}}},
            "zero_optimization.offload_optimizer.device is 'nvme'; write cpu or none",
        ),
        ({"zero_optimization": {"stage": 3, "offload_param": CPU}}, "offload_model to false"),
        ({"zero_optimization": {"stage": 2, "offload_optimizer": CPU}}, "would move it to the GPU for each step"),
        ({"bf16": {"check_grad_overflow": False}}, "bf16.check_grad_overflow is false"),
        ({"zero_optimization": {"stage": 2, "compute_grad_norm": False}}, "compute_grad_norm is false"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=r"^deepspeed\.config: ") as caught:
        read_json(given, "float32", moved=("model", "optimizer"))
    assert words in str(caught.value)


def test_offloading_is_handed_on() -> None:
    zero = {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU, "stage3_prefetch_bucket_size": "auto"}
    found = deepspeed_config(tiny.settings(Path("x"), deepspeed={"zero_optimization": zero}))
    assert found["zero_optimization"] == {"stage": 3, "offload_optimizer": CPU, "offload_param": CPU}
