"""From the run's configuration to the learner's settings."""

from __future__ import annotations

import pickle
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from learner.export import start_folder
from learner.settings import LearnerSettings, OptimizerSettings, TunerSettings
from protocol.config import RunConfig, config_from_mapping
from protocol.errors import ConfigError
from tests.learner import tiny


def config(**training: object) -> RunConfig:
    return config_from_mapping(
        {
            "model": {"model": "somewhere", "torch_dtype": "bfloat16"},
            "tuner": {"train_type": "lora", "target_modules": ["q_proj"], "use_dora": True},
            "training": {"max_steps": 100, "packing": True, **training},
            "deepspeed": {"config": "zero3"},
            "custom": {
                "train_jsonl": "train.jsonl",
                "emit_norm": "none",
                "json_format": "standard",
                "coord_soft_ce_w1": {"w1_weight": 0.5, "target_truncate": 16},
                "extra": {"rollout_matching": {"vllm": {"max_model_len": 2048}}},
            },
        }
    )


def test_settings_follow_the_configuration() -> None:
    found = LearnerSettings.from_config(config(learning_rate=1e-4, aligner_lr=5e-5, warmup_ratio=0.05), 100)
    assert found.tuner == TunerSettings(
        kind="lora", dropout=0.05, target_modules=("q_proj",), use_dora=True, freeze_aligner=False
    )
    assert (found.loss.w1_weight, found.loss.target_truncate, found.loss.normalization) == (0.5, 16, "global")
    assert (found.optimizer.learning_rate, found.optimizer.aligner_lr, found.optimizer.vit_lr) == (1e-4, 5e-5, None)
    assert (found.schedule.kind, found.schedule.warmup_steps, found.schedule.min_lr) == ("cosine", 5, 1e-6)
    assert (found.zero_stage, found.compute_dtype, found.packing) == (3, "bfloat16", True)
    assert pickle.loads(pickle.dumps(found)) == found


def test_an_optimizer_is_what_the_run_says_and_has_no_defaults_of_its_own() -> None:
    """A second set of them would be trained with wherever the first is not handed on."""
    assert {each.default for each in fields(OptimizerSettings)} == {MISSING}
    assert LearnerSettings.from_config(config(), 100).optimizer == OptimizerSettings(
        learning_rate=2e-5,
        vit_lr=None,
        aligner_lr=None,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        max_grad_norm=0.5,
    )


def test_a_constant_rate_has_no_warm_up() -> None:
    for name, steps in (("constant", 0), ("constant_with_warmup", 10)):
        schedule = LearnerSettings.from_config(config(lr_scheduler_type=name), 100).schedule
        assert (schedule.kind, schedule.warmup_steps) == ("constant", steps)


def test_low_precision_runs_at_stage_one_at_least() -> None:
    assert tiny.settings(Path("x"), torch_dtype="bfloat16").zero_stage == 1
    assert tiny.settings(Path("x"), torch_dtype="bfloat16", deepspeed={"bf16": {"enabled": False}}).zero_stage == 0


def test_a_start_checkpoint_that_is_nowhere_is_an_error_of_the_path() -> None:
    with pytest.raises(ConfigError, match=r"model\.model: './nowhere/at all' is neither a folder"):
        start_folder("./nowhere/at all")
