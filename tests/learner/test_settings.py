"""From the run's configuration to the learner's settings, and on to DeepSpeed's JSON."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from learner.deepspeed_engine import OWNED, deepspeed_config
from learner.export import start_folder
from learner.model import build_policy, parameter_groups, part_of, trainable
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
    found = LearnerSettings.from_config(config(learning_rate=1e-4, aligner_lr=5e-5, warmup_ratio=0.05))
    assert found.tuner == TunerSettings(
        kind="lora", dropout=0.05, target_modules=("q_proj",), use_dora=True, freeze_aligner=False
    )
    assert (found.loss.w1_weight, found.loss.target_truncate, found.loss.normalization) == (0.5, 16, "global")
    assert (found.optimizer.learning_rate, found.optimizer.aligner_lr, found.optimizer.vit_lr) == (1e-4, 5e-5, None)
    assert (found.schedule.kind, found.schedule.warmup_steps, found.schedule.min_lr) == ("cosine", 5, 1e-6)
    assert (found.zero_stage, found.compute_dtype, found.packing) == (3, "bfloat16", True)
    assert pickle.loads(pickle.dumps(found)) == found


def test_a_run_measured_in_epochs_must_say_its_steps() -> None:
    with pytest.raises(ConfigError, match=r"training\.max_steps: is -1"):
        LearnerSettings.from_config(config(max_steps=-1))
    assert LearnerSettings.from_config(config(max_steps=-1), num_steps=7).schedule.max_steps == 7


def test_low_precision_runs_at_stage_one_at_least() -> None:
    assert tiny.settings(Path("x"), torch_dtype="bfloat16").zero_stage == 1
    assert tiny.settings(Path("x"), torch_dtype="bfloat16", deepspeed={"bf16": {"enabled": False}}).zero_stage == 0


def test_auto_and_absent_values_of_deepspeeds_json_are_filled_in() -> None:
    given = {
        "train_batch_size": "auto",
        "bf16": {"enabled": "auto"},
        "zero_optimization": {"stage": 2, "reduce_bucket_size": "auto", "overlap_comm": True},
        "gradient_clipping": "auto",
    }
    found = deepspeed_config(tiny.settings(Path("x"), torch_dtype="bfloat16", deepspeed=given))
    assert found["zero_optimization"] == {"stage": 2, "overlap_comm": True}
    assert (found["bf16"]["enabled"], found["fp16"]["enabled"]) == (True, False)
    assert (found["gradient_clipping"], found["train_micro_batch_size_per_gpu"]) == (0.0, 1)
    assert "train_batch_size" not in found


@pytest.mark.parametrize("key", sorted(OWNED))
def test_what_another_setting_decides_may_not_be_repeated_in_deepspeeds_json(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"deepspeed\.config: {key} is set to 5"):
        deepspeed_config(tiny.settings(Path("x"), deepspeed={key: 5}))


def test_a_start_checkpoint_that_is_nowhere_is_an_error_of_the_path() -> None:
    with pytest.raises(ConfigError, match=r"model\.model: './nowhere/at all' is neither a folder"):
        start_folder("./nowhere/at all")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("core.model.language_model.layers.0.mlp.up_proj.weight", "language"),
        ("lm_head", "language"),
        ("model.visual.merger.linear_fc1", "aligner"),
        ("core.model.visual.deepstack_merger_list.1.norm.weight", "aligner"),
        ("model.visual.patch_embed.proj.bias", "vision"),
    ],
)
def test_every_name_belongs_to_one_part(name: str, part: str) -> None:
    assert part_of(name) == part


def test_each_part_has_its_rate_and_vectors_are_not_decayed(checkpoint: Path) -> None:
    optimizer = OptimizerSettings(learning_rate=1e-4, aligner_lr=5e-5, vit_lr=1e-6, weight_decay=0.1)
    settings = tiny.settings(checkpoint, optimizer=optimizer)
    policy = build_policy(settings)
    groups = {group["name"]: group for group in parameter_groups(policy, settings)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "aligner": (5e-5, 0.1),
        "aligner/no_decay": (5e-5, 0.0),
        "language": (1e-4, 0.1),
        "language/no_decay": (1e-4, 0.0),
        "vision": (1e-6, 0.1),
        "vision/no_decay": (1e-6, 0.0),
    }
    assert sum(len(group["params"]) for group in groups.values()) == len(list(trainable(policy)))


def test_frozen_parts_are_not_trained_with_or_without_adapters(checkpoint: Path) -> None:
    for kind in ("full", "lora"):
        tuner = TunerSettings(kind=kind, freeze_llm=True, freeze_aligner=False)  # type: ignore[arg-type]
        policy = build_policy(tiny.settings(checkpoint, tuner=tuner))
        assert {part_of(name) for name, _ in trainable(policy)} == {"aligner"}
        assert all(("lora_" in name) == (kind == "lora") for name, _ in trainable(policy))


def test_targets_may_be_suffixes_or_a_regular_expression(checkpoint: Path) -> None:
    def adapted(targets: tuple[str, ...] | str) -> set[str]:
        policy = build_policy(tiny.settings(checkpoint, tuner=TunerSettings(kind="lora", target_modules=targets)))
        return {name.split(".lora_")[0] for name, _ in trainable(policy)}

    assert {name.rsplit(".", 1)[1] for name in adapted(("q_proj", "down_proj"))} == {"q_proj", "down_proj"}
    assert adapted(r".*layers\.1\.mlp\.up_proj") == {"core.model.language_model.layers.1.mlp.up_proj"}
    with pytest.raises(ConfigError, match="selects no linear layer"):
        adapted(("nothing",))


def test_adapters_in_the_head_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="selects lm_head"):
        build_policy(tiny.settings(checkpoint, tuner=TunerSettings(kind="lora", target_modules=("lm_head",))))
