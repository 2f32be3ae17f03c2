"""The run file: what loads, what is refused and with which words, and that every runbook snippet is taken verbatim."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from protocol.config import RunConfig, config_from_mapping, load_config
from protocol.config.explain import CALLED, REMOVED, all_paths
from protocol.config.reference import as_markdown
from protocol.errors import ConfigError
from protocol.segments import segment_bytes

ROOT = Path(__file__).parents[2]
MATCHING = "custom.extra.rollout_matching"
BOTH_PARTS = {"enabled": True, "offload_model": True, "offload_optimizer": True}
SHARED_GPU = {
    "cluster__colocate": True,
    "cluster__gpus_per_actor": 0.5,
    "cluster__gpus_per_learner": 0.5,
    "matching__offload": BOTH_PARTS,
}
LEARNER_ON_GPU = {"cluster__gpus_per_learner": 1}
NCCL = {"sync__backend": "nccl", "cluster__gpus_per_actor": 1} | LEARNER_ON_GPU
CARRY = {"training__packing": True, "training__packing_carry": True, "rollout__max_staleness": 1}
WHOLE_SEGMENT = segment_bytes(20_000)
"""Of the default `global_max_length`."""


def minimal(**changes: Any) -> dict[str, Any]:
    """Only what is required; `changes` sets dotted paths, written with `__` for dots."""
    values: dict[str, Any] = {
        "model": {"model": "checkpoint"},
        "custom": {
            "train_jsonl": "train.jsonl",
            "emit_norm": "none",
            "json_format": "standard",
            "extra": {"rollout_matching": {"vllm": {"max_model_len": 4096}}},
        },
    }
    for path, value in changes.items():
        *parents, last = path.replace("matching__", "custom__extra__rollout_matching__", 1).split("__")
        node = values
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = value
    return values


def refusal(**changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        config_from_mapping(minimal(**changes), source="run.yaml")
    return str(caught.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_minimal_run_has_the_runbooks_defaults() -> None:
    config = config_from_mapping(minimal())
    assert config.matching.rollout_backend == "vllm"
    assert (config.matching.candidate_top_k, config.matching.maskiou_gate) == (10, 0.3)
    assert config.training.seed == 17
    assert config.training.lr_floor == 1e-6
    assert config.m_steps == 1


def test_yaml_reads_a_bare_no_as_false_and_it_means_no() -> None:
    config = config_from_mapping(
        minimal(training__save_strategy=False, training__eval_strategy="No"), source="run.yaml"
    )
    assert (config.training.save_strategy, config.training.eval_strategy) == ("no", "no")


def test_a_run_survives_pickle_and_dump(tmp_path: Path) -> None:
    config = config_from_mapping(
        minimal(training__run_name="a", matching__soft_ce_weight=0.5, matching__target_truncate=4)
    )
    assert pickle.loads(pickle.dumps(config)) == config
    config.dump(tmp_path / "run" / "config.yaml")
    again = load_config(tmp_path / "run" / "config.yaml")
    assert again.as_mapping() == config.as_mapping()
    assert again.coord_loss == config.coord_loss


def test_a_run_cannot_be_changed() -> None:
    config = config_from_mapping(minimal())
    with pytest.raises(ValueError, match="frozen"):
        config.training.max_steps = 3  # type: ignore[misc]


def test_run_dir_is_output_dir_and_the_files_name(tmp_path: Path) -> None:
    path = write(
        tmp_path / "night.yaml", yaml.safe_dump(minimal(training__output_dir="out", training__logging_dir="tb"))
    )
    config = load_config(path)
    assert config.run_dir == Path("out/night")
    assert config.logging_dir == Path("tb/night")
    assert config.monitor_dump_dir == Path("out/night/monitor_dumps")
    given = minimal(training__output_dir="out", training__run_name="a", matching__monitor_dump={"out_dir": "dumps"})
    config = config_from_mapping(given)
    assert (config.logging_dir, config.monitor_dump_dir) == (Path("out/a"), Path("dumps"))


def test_later_layers_win_key_by_key(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "training: {seed: 1, max_steps: 1}")
    write(tmp_path / "b.yaml", "training: {seed: 2}\ntuner: {lora_rank: 4}")
    write(tmp_path / "base.yaml", "training: {seed: 9, weight_decay: 0.3}")
    path = write(tmp_path / "run.yaml", "extends: [a.yaml, b.yaml]\n" + yaml.safe_dump(minimal(tuner__lora_alpha=5)))
    config = load_config(
        path, base=tmp_path / "base.yaml", overrides=["training.max_steps=7", "training.learning_rate=1e-4"]
    )
    assert (config.training.seed, config.training.max_steps, config.training.weight_decay) == (2, 7, 0.3)
    assert (config.tuner.lora_rank, config.tuner.lora_alpha) == (4, 5)
    assert config.training.learning_rate == 1e-4


def test_inherit_is_another_word_for_extends(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "training: {seed: 5}")
    path = write(tmp_path / "run.yaml", "inherit: a.yaml\n" + yaml.safe_dump(minimal()))
    assert load_config(path).training.seed == 5


def test_a_circle_of_extends_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.yaml", "extends: b.yaml")
    write(tmp_path / "b.yaml", "extends: a.yaml")
    with pytest.raises(ConfigError, match=r"circle, a\.yaml → b\.yaml → a\.yaml"):
        load_config(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: [", r"run\.yaml:1: is not valid YAML"),
        ("a: 1\n b: 2", r"run\.yaml:2: is not valid YAML"),
        ("\x01", "is no text that YAML allows"),
        ("- 1", "must hold a mapping"),
        ("training: {seed: 1, seed: 2}", "key 'seed' is written twice"),
        ("extends: 3", "must be a file name or a list"),
        ("extends: gone.yaml", "cannot be read"),
    ],
)
def test_a_broken_file_is_a_config_error(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path / "run.yaml", text))


def test_a_setting_of_the_old_trainer_is_answered_with_one_that_exists() -> None:
    known = set(all_paths(RunConfig))
    for path, advice in REMOVED.items():
        assert path not in known
        named = re.findall(r"\b(?:custom|training|cluster)\.[a-z0-9_]+|\bglobal_max_length\b", advice)
        assert set(named) <= known, advice
    assert refusal(training__optim="adamw_torch").startswith("training.optim: the optimizer is AdamW; remove the key")


def test_an_override_without_a_value_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "run.yaml", yaml.safe_dump(minimal()))
    with pytest.raises(ConfigError, match=r"expected dotted\.path=value"):
        load_config(path, overrides=["training.max_steps"])


def test_an_unknown_key_names_the_nearest_and_its_file(tmp_path: Path) -> None:
    write(tmp_path / "base.yaml", "training: {max_step: 3}")
    path = write(tmp_path / "run.yaml", "extends: base.yaml\n" + yaml.safe_dump(minimal()))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith("training.max_step: is no known setting, the nearest is training.max_steps; ")
    assert message.endswith("base.yaml)")


def test_a_misplaced_key_is_sent_home() -> None:
    assert "it belongs to custom.extra.rollout_matching.prefix_policy; move it there" in refusal(
        prefix_policy="matched"
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("rollout_matching.max_new_tokens", "it belongs to custom.extra.rollout_matching; move it there"),
        ("rollout_buffer.m_steps", "it belongs to custom.extra.rollout_matching.rollout_buffer; move it there"),
        ("cluster.num_actors", "it belongs to rollout.num_actors; move it there"),
        (
            "rollout.temperature",
            "it belongs to custom.coord_soft_ce_w1.temperature or custom.extra.rollout_matching.temperature; move it",
        ),
        ("model.path", "it is called model.model here; rename it"),
        ("training.lr", "it is called training.learning_rate here; rename it"),
        ("kubernetes.model", "the nearest is kubernetes.models; rename"),
        ("metrics.enabeld", "the nearest is metrics.enabled; rename"),
    ],
)
def test_what_is_written_in_a_wrong_place_or_by_another_name_is_answered_with_what_is_meant(
    tmp_path: Path, written: str, meant: str
) -> None:
    path = write(tmp_path / "run.yaml", yaml.safe_dump(minimal()))
    with pytest.raises(ConfigError, match=re.escape(meant)):
        load_config(path, overrides=[f"{written}=1"])


def test_what_settings_are_called_elsewhere_is_no_setting_and_leads_to_one() -> None:
    known = set(all_paths(RunConfig))
    assert not known & set(CALLED)
    assert set(CALLED.values()) <= known


def test_everything_that_is_wrong_is_reported_at_once() -> None:
    message = refusal(
        training__max_step=3,
        training__seed=-1,
        model__torch_dtype="float8",
        custom__emit_norm="norm100",
        matching__vllm={"max_model_len": 512},
        custom__coord_tokens={"enabled": True},
    )
    lines = message.splitlines()
    assert lines[0] == "6 settings are wrong"
    assert sorted(line.split(":")[0] for line in lines[1:]) == [
        "custom.coord_tokens.enabled",
        "custom.emit_norm",
        f"{MATCHING}.vllm.max_model_len",
        "model.torch_dtype",
        "training.max_step",
        "training.seed",
    ]


def test_a_wrong_value_is_not_echoed_by_a_rule_that_needs_it() -> None:
    message = refusal(matching__vllm={"max_model_len": "8k"})
    assert message.startswith(f"{MATCHING}.vllm.max_model_len: must be a whole number, got '8k' (str)")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training__seed": True}, "training.seed: must be a whole number, got True"),
        ({"training__seed": 1.5}, "training.seed: must be a whole number, got 1.5"),
        ({"training__learning_rate": float("nan")}, "training.learning_rate: must be a finite number"),
        ({"training__packing_min_fill_ratio": 0}, "packing_min_fill_ratio: must be > 0, got 0"),
        ({"training__packing_buffer": 0}, "packing_buffer: must be > 0, got 0"),
        ({"matching__rollout_backend": "sglang"}, "must be one of 'vllm' or 'hf', got 'sglang'"),
        ({"matching__rollout_buffer": [1]}, "rollout_buffer: must be a mapping, got [1]"),
        ({"matching__temperature": -0.1}, "temperature: must be >= 0"),
        ({"kubernetes__name": "My_Run"}, "kubernetes.name: must be text of the form ^[a-z]"),
        ({"deepspeed__config": 3}, "deepspeed.config: must be text"),
        ({"prompts": {"system": "x"}}, "custom.system_prompt"),
        ({"custom__sample_limit": 3}, "custom.train_sample_limit and custom.val_sample_limit"),
    ],
)
def test_a_value_out_of_type_or_range_is_refused(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(**changes)


@pytest.mark.parametrize(
    ("changes", "paths"),
    [
        ({"custom__coord_tokens": {"enabled": True}}, "custom.coord_tokens.enabled: is true"),
        ({"custom__coord_tokens": {"enabled": False}}, "custom.coord_tokens.enabled: must not be false"),
        ({"custom__coord_tokens": {"skip_bbox_norm": False}}, "custom.coord_tokens.skip_bbox_norm"),
        ({"custom__val_sample_with_replacement": True}, "custom.val_sample_with_replacement: needs val_sample_limit"),
        ({"custom__fusion_config": "mix.yaml"}, "custom.fusion_config: mixtures are not supported"),
        ({"custom__jsonl": "b.jsonl"}, "custom.jsonl: stands beside train_jsonl"),
        ({"matching__vllm": {}}, f"{MATCHING}.vllm.max_model_len: is required"),
        ({"matching__max_new_tokens": 4096}, f"{MATCHING}.vllm.max_model_len: must exceed max_new_tokens 4096"),
        ({"matching__decode_mode": "beam"}, f"{MATCHING}.decode_mode: must be greedy"),
        (
            {"matching__rollout_backend": "hf", "matching__decode_mode": "beam", "matching__temperature": 0.5},
            f"{MATCHING}.decode_mode: beam search does not sample",
        ),
        ({"matching__num_return_sequences": 2}, f"{MATCHING}.num_return_sequences: must be <= num_beams 1"),
        ({"matching__vllm__enable_lora": True}, f"{MATCHING}.vllm.enable_lora: needs tuner.train_type lora"),
        ({"matching__vllm__sleep_level": 1}, f"{MATCHING}.vllm.sleep_level: must be 0, got 1"),
        (
            {"matching__vllm__tensor_parallel_size": 2, "cluster__gpus_per_actor": 1.0},
            f"{MATCHING}.vllm.tensor_parallel_size: is 2 but cluster.gpus_per_actor is 1",
        ),
        (
            {"matching__rollout_backend": "hf", "cluster__gpus_per_actor": 2.0},
            "cluster.gpus_per_actor: must be at most 1 with rollout_backend hf, got 2",
        ),
        ({"training__packing_carry": True}, "training.packing_carry: needs training.packing true"),
        (
            {"training__packing_carry": True, "training__packing": True},
            "training.packing_carry: needs rollout.max_staleness of 1 or more, got 0",
        ),
        ({"training__bf16": False}, "training.bf16: is false but model.torch_dtype is bfloat16"),
        ({"training__min_lr": 1.0}, "training.min_lr: must not exceed learning_rate"),
        ({"training__lr_scheduler_kwargs": {"min_lr": 1.0}}, "training.lr_scheduler_kwargs.min_lr: must not exceed"),
        ({"training__report_to": "mlflow"}, "training.report_to: knows tensorboard, wandb and none, got mlflow"),
        (
            {"metrics__vllm": True, "matching__rollout_backend": "hf"},
            "metrics.vllm: needs rollout_backend vllm, got hf",
        ),
        ({"training__eval_steps": 5}, "training.eval_steps: is 5 but custom.val_jsonl is missing"),
        ({"custom__train_sample_limit": 31}, "custom.train_sample_limit: 31 records in 1 epochs fill no window"),
        ({"model__attn_impl": "flash_attention_2"}, "model.attn_impl: flash_attention_2 needs a GPU"),
        ({"model__torch_dtype": "float16"}, "model.torch_dtype: must be one of 'float32' or 'bfloat16'"),
        ({"rollout__min_healthy": 2}, "rollout.min_healthy: must be <= num_actors 1"),
        ({"rollout__max_staleness": 200}, "buffer.max_segments: must hold effective_batch_size 32 x"),
        ({"cluster__gpus_per_learner": 2.0}, "cluster.gpus_per_learner: must be at most 1"),
        ({"cluster__gpus_per_actor": 1.5}, "cluster.gpus_per_actor: must be a fraction below 1 or a whole number"),
        ({"sync__backend": "nccl"}, "sync.backend: nccl needs GPUs on both sides"),
        ({"deepspeed__config": None}, "deepspeed.config: is required when enabled is true"),
        (
            {"matching__offload": BOTH_PARTS, "deepspeed__config": "zero0", "cluster__gpus_per_learner": 1},
            f"{MATCHING}.offload: DeepSpeed can offload states with ZeRO only, got stage 0",
        ),
        (
            {"matching__offload": BOTH_PARTS, "deepspeed__config": "zero1", "cluster__gpus_per_learner": 1},
            f"{MATCHING}.offload: DeepSpeed's optimizer for bfloat16 with ZeRO stage 1 cannot move its states",
        ),
        (
            {"matching__offload": BOTH_PARTS, "deepspeed__config": "zero3", "cluster__gpus_per_learner": 1},
            f"{MATCHING}.offload: DeepSpeed moves the optimizer states of ZeRO stage 3 for its own FusedAdam only",
        ),
        (
            {"matching__offload": {"enabled": True, "offload_optimizer": True}},
            f"{MATCHING}.offload.enabled: moves states between a GPU and host memory",
        ),
        (
            {"cluster__colocate": True, "matching__offload": BOTH_PARTS, "cluster__gpus_per_learner": 1},
            "cluster.colocate: engine and learner share one GPU by turns, got cluster.gpus_per_actor 0",
        ),
        (SHARED_GPU | {"rollout__num_actors": 2}, "cluster.colocate: is for one actor and one learner, got 2 and 1"),
        (SHARED_GPU | {"rollout__max_staleness": 1}, "cluster.colocate: needs rollout.max_staleness 0, got 1"),
        (
            SHARED_GPU | {"matching__offload": {"enabled": True, "offload_model": True}},
            "cluster.colocate: needs offload.enabled, offload_model and offload_optimizer true",
        ),
        (
            {"tuner": {"freeze_llm": True, "freeze_vit": True, "freeze_aligner": True}},
            "tuner.freeze_llm: llm, vit and aligner are all frozen",
        ),
        ({"tuner": {"target_regex": "("}}, "tuner.target_regex: is no regular expression"),
        (
            {"tuner": {"train_type": "lora", "use_dora": True}, "matching__vllm__enable_lora": True},
            f"{MATCHING}.vllm.enable_lora: cannot serve an adapter with tuner.use_dora",
        ),
        (
            {"tuner": {"train_type": "lora", "lora_rank": 1024}, "matching__vllm__enable_lora": True},
            "tuner.lora_rank: is 1024, and vLLM serves adapters up to 512",
        ),
        (
            {
                "model": {"model": "m", "attn_impl": "flash_attention_2", "torch_dtype": "float32"},
                "cluster__gpus_per_learner": 1,
            },
            "model.attn_impl: flash_attention_2 computes in 16 bits",
        ),
        ({"training__eval_strategy": "epoch"}, "training.eval_strategy: is epoch but custom.val_jsonl is missing"),
        ({"buffer__max_segments": 31}, "buffer.max_segments: must hold effective_batch_size 32 x"),
        ({"buffer__max_bytes": 32 * WHOLE_SEGMENT - 1}, "buffer.max_bytes: must hold a window of 32 segments"),
        (
            CARRY | {"buffer__max_bytes": 64 * WHOLE_SEGMENT - 1},
            "buffer.max_bytes: must hold a window of 64 segments",
        ),
        (
            NCCL | {"sync__timeout_s": 1800.0, "cluster__step_timeout_s": 1800.0},
            "sync.timeout_s: must be below cluster.step_timeout_s 1800",
        ),
        (
            NCCL | {"tuner__train_type": "lora", "matching__vllm__enable_lora": True},
            "sync.backend: nccl broadcasts merged weights",
        ),
        (NCCL | {"matching__rollout_backend": "hf"}, "sync.backend: nccl broadcasts merged weights"),
        (NCCL | {"cluster__gpus_per_actor": 0}, "sync.backend: nccl needs GPUs on both sides"),
        (
            {"kubernetes__queue": "team", "cluster__autoscaling": True},
            "kubernetes.queue: Kueue admits a fixed number of pods",
        ),
        (
            SHARED_GPU | {"cluster__gpus_per_actor": 0.75},
            "cluster.colocate: engine and learner share one GPU by turns, got cluster.gpus_per_actor 0.75",
        ),
        (
            SHARED_GPU | {"cluster__gpus_per_actor": 0},
            "cluster.colocate: engine and learner share one GPU by turns, got cluster.gpus_per_actor 0 and",
        ),
        (SHARED_GPU | {"matching__rollout_backend": "hf"}, "cluster.colocate: needs rollout_backend vllm"),
    ],
)
def test_settings_that_cannot_work_together_are_refused_by_path(changes: dict[str, Any], paths: str) -> None:
    message = refusal(**changes)
    assert message.startswith(paths)
    assert message.endswith("(run.yaml)")


@pytest.mark.parametrize(
    "changes",
    [
        {"matching__max_new_tokens": 4095},
        {"tuner": {"train_type": "lora", "lora_rank": 512}, "matching__vllm__enable_lora": True},
        {"model": {"model": "m", "attn_impl": "flash_attention_2"}, "cluster__gpus_per_learner": 1},
        {"custom__train_sample_limit": 32},
        {"custom__train_sample_limit": 31, "training__max_steps": 0},
        {"training__eval_strategy": "no", "training__eval_steps": 5},
        {"training__eval_strategy": "epoch", "custom__val_jsonl": "val.jsonl"},
        {"buffer__max_segments": 32, "buffer__max_bytes": 32 * WHOLE_SEGMENT},
        {"buffer__max_segments": 64, "rollout__max_staleness": 1},
        {"cluster__gpus_per_learner": 1, "cluster__gpus_per_actor": 2},
        {"matching__vllm__tensor_parallel_size": 2, "cluster__gpus_per_actor": 2},
        {"matching__vllm__tensor_parallel_size": 2},
        {"matching__rollout_backend": "hf", "cluster__gpus_per_actor": 1},
        {"matching__offload": {"enabled": True, "offload_model": True}, "deepspeed__config": "zero3"} | LEARNER_ON_GPU,
        {"matching__offload": BOTH_PARTS, "deepspeed__config": "zero1", "model__torch_dtype": "float32"}
        | LEARNER_ON_GPU,
        {"kubernetes__queue": "team"},
        {"cluster__autoscaling": True},
        {"rollout__num_actors": 2, "cluster__num_learners": 2, "rollout__max_staleness": 1},
    ],
)
def test_settings_at_the_edge_of_a_rule_work_together(changes: dict[str, Any]) -> None:
    config_from_mapping(minimal(**changes))


def test_what_carries_broadcasts_or_shares_a_gpu_loads_as_the_rules_ask_for_it() -> None:
    for changes in (CARRY | {"buffer__max_bytes": 64 * WHOLE_SEGMENT}, NCCL, SHARED_GPU):
        config_from_mapping(minimal(**changes))


def test_truncation_is_refused_with_the_reason() -> None:
    message = refusal(template__truncation_strategy="right")
    assert message.startswith("template.truncation_strategy: 'right' would cut targets")


def test_rollout_matching_overrides_the_coordinate_loss() -> None:
    loss = {"target_sigma": 3.0, "target_truncate": 16, "soft_ce_weight": 0.5}
    config = config_from_mapping(minimal(custom__coord_soft_ce_w1=loss, matching__temperature_coord=2.0))
    assert (config.coord_loss.target_sigma, config.coord_loss.target_truncate) == (3.0, 16)
    assert (config.coord_loss.temperature, config.coord_loss.soft_ce_weight) == (2.0, 0.5)


def test_what_is_dumped_is_the_coordinate_loss_in_effect(tmp_path: Path) -> None:
    loss = {"target_sigma": 3.0, "target_truncate": 16, "soft_ce_weight": 0.5, "w1_weight": 0.25, "gate_weight": 0.75}
    config = config_from_mapping(minimal(custom__coord_soft_ce_w1=loss | {"temperature": 2.0}))
    config.dump(tmp_path / "run.yaml")
    assert load_config(tmp_path / "run.yaml").coord_loss == config.coord_loss
    dumped = yaml.safe_load((tmp_path / "run.yaml").read_text())["custom"]["extra"]["rollout_matching"]
    assert {name: dumped[name] for name in (*loss, "temperature_coord")} == loss | {"temperature_coord": 2.0}


def test_a_written_null_truncate_overrides_and_an_absent_one_does_not() -> None:
    loss = {"target_truncate": 16}
    absent = config_from_mapping(minimal(custom__coord_soft_ce_w1=loss))
    written = config_from_mapping(minimal(custom__coord_soft_ce_w1=loss, matching__target_truncate=None))
    assert absent.coord_loss.target_truncate == 16
    assert written.coord_loss.target_truncate is None


def test_zero_means_the_default_where_the_runbook_says_so() -> None:
    config = config_from_mapping(
        minimal(
            matching__monitor_dump={"max_text_chars": 0},
            matching__desc_monitor={"semantic_threshold": 0, "every_steps": 0},
            matching__repeat_terminate={"ngram_repeats": 0},
            matching__repetition_penalty=None,
        )
    )
    assert config.matching.monitor_dump.max_text_chars == 4000
    assert config.matching.desc_monitor.semantic_threshold == 0.6
    assert config.matching.desc_monitor.every(logging_steps=5) == 5
    assert config.matching.repeat_terminate.ngram_repeats == 2
    assert config.matching.repetition_penalty == 1.0


def test_m_steps_count_only_with_the_buffer_enabled() -> None:
    off = {"enabled": False, "m_steps": 4}
    assert config_from_mapping(minimal(matching__rollout_buffer=off)).m_steps == 1
    assert config_from_mapping(minimal(matching__rollout_buffer=off | {"enabled": True})).m_steps == 4


@pytest.mark.parametrize(("drop_last", "steps"), [(True, 6), (False, 8)])
def test_epochs_become_optimizer_steps(drop_last: bool, steps: int) -> None:
    buffer = {"enabled": True, "m_steps": 2}
    values = minimal(
        matching__rollout_buffer=buffer, training__num_train_epochs=2.0, training__dataloader_drop_last=drop_last
    )
    config = config_from_mapping(values)
    assert config.num_optimizer_steps(50) == steps  # 100 rollouts are 3.1 windows of 32
    for given in (0, 5):
        assert config_from_mapping(minimal(training__max_steps=given)).num_optimizer_steps(50) == given


@pytest.mark.parametrize(
    ("num_records", "epochs", "batch_size", "drop_last", "steps"),
    [(100, 1.1, 10, False, 11), (100, 0.29, 1, True, 29), (100, 0.57, 57, True, 1), (1000, 1e-3, 1, False, 1)],
)
def test_a_fraction_of_an_epoch_is_the_decimal_that_was_written(
    num_records: int, epochs: float, batch_size: int, drop_last: bool, steps: int
) -> None:
    values = minimal(
        training__num_train_epochs=epochs,
        training__effective_batch_size=batch_size,
        training__dataloader_drop_last=drop_last,
    )
    assert config_from_mapping(values).num_optimizer_steps(num_records) == steps


def test_debug_swaps_limits_and_output(tmp_path: Path) -> None:
    text = yaml.safe_dump(
        minimal(debug={"output_dir": "dbg", "train_sample_limit": 40}, custom__train_sample_limit=999)
    )
    path = write(tmp_path / "run.yaml", text)
    assert load_config(path).custom.train_sample_limit == 999
    config = load_config(path, debug=True)
    assert (config.custom.train_sample_limit, config.custom.val_sample_limit) == (40, 16)
    assert config.run_dir == Path("dbg/run")


def test_vllm_options_carry_vllms_own_names_only() -> None:
    vllm = {
        "max_model_len": 4096,
        "kv_cache_dtype": "fp8",
        "swap_space": 4.0,
        "dtype": "float32",
        "infer_batch_size": 0,
    }
    options = config_from_mapping(minimal(matching__vllm=vllm)).matching.vllm.engine_options()
    assert options["kv_cache_dtype"] == "fp8"
    assert not {"swap_space", "dtype", "max_model_len", "infer_batch_size", "sleep_level"} & set(options)
    assert None not in options.values()


@pytest.mark.parametrize(("asked", "most"), [(0, 256), (None, 256), (-1, 256), (8, 8), (1000, 256)])
def test_an_engine_is_given_at_most_infer_batch_size_rollouts_at_once(asked: int | None, most: int) -> None:
    vllm = {"max_model_len": 4096, "infer_batch_size": asked}
    options = config_from_mapping(minimal(matching__vllm=vllm)).matching.vllm.engine_options()
    assert options["max_num_seqs"] == most


@pytest.mark.parametrize("config", ["zero1", {"zero_optimization": {"stage": 1}}, "file"])
def test_deepspeed_is_a_name_a_mapping_or_a_file(tmp_path: Path, config: Any) -> None:
    if config == "file":
        config = str(write(tmp_path / "ds.json", '{"zero_optimization": {"stage": 1}}'))
    assert config_from_mapping(minimal(deepspeed__config=config)).deepspeed.zero_stage() == 1


def test_a_missing_deepspeed_file_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"deepspeed\.config: 'gone\.json' is neither zero0"):
        config_from_mapping(minimal(deepspeed__config="gone.json")).deepspeed.resolve()


@pytest.mark.parametrize("config", ["gone.json", {"zero_optimization": {"stage": 7}}])
def test_a_deepspeed_setting_that_says_no_stage_is_left_to_the_check_also_with_offloading(config: Any) -> None:
    given = minimal(matching__offload=BOTH_PARTS, deepspeed__config=config, cluster__gpus_per_learner=1)
    with pytest.raises(ConfigError, match=r"^deepspeed\.config: "):
        config_from_mapping(given).deepspeed.resolve()


RUNBOOK_SNIPPETS = """
desc_monitor:
  enabled: true
  mode: semantic
  every_steps: 0
  max_pairs: 64
  semantic_model: sentence-transformers/all-MiniLM-L6-v2
  semantic_threshold: 0.6
  semantic_device: cpu
  semantic_batch_size: 64
  semantic_max_length: 64
rollout_buffer:
  enabled: true
  m_steps: 4
offload:
  enabled: false
  offload_model: false
  offload_optimizer: false
vllm:
  max_model_len: 16000
  tensor_parallel_size: 4
  gpu_memory_utilization: 0.50
  enable_lora: false
  load_format: dummy
  enable_prefix_caching: true
  sleep_level: 0
  enforce_eager: true
  disable_custom_all_reduce: true
  max_num_seqs: 256
  max_num_batched_tokens: 16384
  enable_chunked_prefill: true
  disable_chunked_mm_input: false
  skip_mm_profiling: true
  kv_cache_dtype: auto
  cpu_offload_gb: 0
  swap_space: 4
  limit_mm_per_prompt: {image: 1, video: 0}
  mm_encoder_tp_mode: weights
  infer_batch_size: 0
monitor_dump:
  enabled: true
  every_steps: 10
  dump_first_step: true
  only_world_process_zero: true
  max_events: 20
  max_samples: 1
  max_text_chars: 4000
  write_markdown: true
  out_dir: null
repeat_terminate:
  enabled: true
  min_new_tokens: 256
  max_consecutive_token_repeats: 32
  ngram_size: 32
  ngram_repeats: 2
  max_object_keys: 128
rollout_backend: vllm
decode_mode: greedy
max_new_tokens: 8192
num_beams: 1
temperature: 0.0
repetition_penalty: 1.05
rollout_generate_batch_size: 4
candidate_top_k: 5
maskiou_gate: 0.3
maskiou_resolution: 256
fp_cost: 0.5
fn_cost: 2
ot_cost: l2
ot_epsilon: 10
ot_iters: 3
debug_dump_parse_failures: false
debug_dump_max: 3
"""


def test_every_runbook_snippet_loads_verbatim() -> None:
    snippets = yaml.safe_load(RUNBOOK_SNIPPETS)
    values = minimal()
    values["custom"]["extra"]["rollout_matching"] = snippets
    config = config_from_mapping(values)
    assert config.m_steps == 4
    assert config.matching.fn_cost == 2.0
    loaded = config.model_dump()["custom"]["extra"]["rollout_matching"]
    for key, value in snippets.items():
        kept = {name: loaded[key][name] for name in value} if isinstance(value, dict) else loaded[key]
        assert kept == value


@pytest.mark.parametrize("section", ["desc_monitor", "rollout_buffer", "offload", "monitor_dump", "repeat_terminate"])
def test_each_runbook_section_loads_on_its_own(section: str) -> None:
    snippet = yaml.safe_load(RUNBOOK_SNIPPETS)[section]
    config = config_from_mapping(minimal(**{f"matching__{section}": snippet}))
    assert getattr(config.matching, section).enabled == snippet["enabled"]


def test_the_runbooks_base_values_load() -> None:
    base = """
    template: {template: qwen3_vl, truncation_strategy: delete, max_pixels: 786432}
    data: {dataset: [dummy], dataloader_num_workers: 8}
    tuner: {train_type: lora, use_dora: true, lora_rank: 32, lora_alpha: 64, target_regex: '.*q_proj', freeze_vit: true,
            freeze_llm: false, freeze_aligner: false, modules_to_save: []}
    training: {per_device_train_batch_size: 1, effective_batch_size: 32, learning_rate: 2.0e-5, aligner_lr: 5e-5,
               vit_lr: 1e-5, lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr: 1e-6},
               warmup_ratio: 0.1, weight_decay: 0.1, max_grad_norm: 0.5, bf16: true, seed: 17, packing: true,
               packing_buffer: 512, packing_min_fill_ratio: 0.65, packing_drop_last: true, eval_packing: false,
               gradient_checkpointing: true, dataloader_drop_last: true, save_delay_steps: 200, save_last_epoch: true,
               metric_for_best_model: eval_rollout_f1, greater_is_better: true, report_to: [tensorboard]}
    deepspeed: {enabled: true, config: zero2}
    global_max_length: 16000
    """
    config = config_from_mapping(minimal(**yaml.safe_load(base.replace("5e-5", "5.0e-5").replace("1e-", "1.0e-"))))
    assert config.training.aligner_lr == 5e-5
    assert config.training.lr_floor == 1e-6


def test_every_setting_is_documented() -> None:
    page = as_markdown()
    for path in all_paths(RunConfig):
        assert f"`{path}`" in page, path
    assert "|  |" not in page


def test_the_reference_page_is_current() -> None:
    page = ROOT / "docs" / "configuration.md"
    assert page.read_text(encoding="utf-8") == as_markdown(), (
        "run python -m protocol.config.reference > docs/configuration.md"
    )


def test_every_shipped_run_file_loads() -> None:
    files = sorted(path for path in (ROOT / "configs").glob("**/*.yaml") if path.name != "runtime_env.yaml")
    assert files
    for path in files:
        load_config(path)


def test_importing_the_config_pulls_in_no_heavy_library() -> None:
    heavy = ("torch", "ray", "vllm", "scipy", "transformers")
    code = f"import sys, protocol.config; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"


@pytest.mark.parametrize("name", ["''", ".", "..", "/abs", "a/../.."])
def test_a_run_name_stays_below_the_folder_of_all_runs(name: str) -> None:
    with pytest.raises(ConfigError, match=r"training\.run_name: must be the name of a folder below output_dir"):
        load_config("configs/demo.yaml", overrides=[f"training.run_name={name}"])


@pytest.mark.parametrize("value", ["2026-13-45", "{[a]: 1}", "'"])
def test_a_value_that_yaml_cannot_read_is_named_by_its_path(value: str, tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("training: {}\n")
    with pytest.raises(ConfigError, match=r"^training\.run_name: the value .* is not valid YAML"):
        load_config(path, overrides=[f"training.run_name={value}"])
    path.write_text(f"training: {{run_name: {value}\n}}\n")
    with pytest.raises(ConfigError, match=r"a\.yaml"):
        load_config(path)


def test_a_setting_that_no_code_names_says_that_it_has_no_effect() -> None:
    """But one with a single value, which says that by its type, and those that vLLM is given by its own names."""
    packages = [path for name in ("protocol", "actors", "learner", "deploy") for path in (ROOT / name).rglob("*.py")]
    words = set(re.findall(r"\w+", "\n".join(path.read_text() for path in packages if path.parent.name != "config")))
    config = "\n".join(path.read_text() for path in (ROOT / "protocol" / "config").glob("*.py"))
    rows = re.findall(r"^\| `([\w.]+)` \| (.*?) \| .*? \| (.*) \|$", as_markdown(), re.MULTILINE)
    assert len(rows) > 100
    for key, kind, meaning in rows:
        name = key.rpartition(".")[2]
        is_named = name in words or f".{name}" in config
        if not is_named and ".vllm." not in key and not re.fullmatch("`[^`]*`", kind):
            assert meaning.startswith("Accepted for runbook files; without effect"), key
