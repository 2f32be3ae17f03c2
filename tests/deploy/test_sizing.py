"""Counts that are exact, formulas with small numbers, and the ten likeliest wrong configurations."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from deploy.check_sizing import check_sizing
from deploy.cli import main
from deploy.model_files import weight_files
from deploy.model_shape import PRESETS, ModelShape, model_shape, preset
from deploy.sizing import (
    EAGER_LAYER_S,
    ENGINE_WORKSPACE,
    HEAD_CHUNK_BYTES,
    Device,
    Load,
    balance,
    checkpoint_bytes,
    engine_memory,
    host_memory,
    learner_memory,
    learner_stage,
)
from protocol.config import DeepSpeedConfig, RunConfig, load_config

ROOT = Path(__file__).resolve().parents[2]
NODE = ROOT / "configs" / "node_8gpu.yaml"
RESULTS = ROOT / "benchmarks" / "results"
MATCHING = "custom.extra.rollout_matching"


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def node(*overrides: str) -> RunConfig:
    return load_config(NODE, overrides=list(overrides))


def test_the_demo_model_is_counted_to_the_last_parameter() -> None:
    shape = model_shape(load_config(ROOT / "configs" / "demo.yaml"))
    assert shape is not None
    stored = 0
    for file in weight_files(ROOT / "deploy" / "demo" / "model"):
        content = file.read_bytes()
        header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
        for name, entry in header.items():
            if name != "__metadata__":
                size = 1
                for side in entry["shape"]:
                    size *= side
                stored += size
    assert shape.num_params == stored


@pytest.mark.parametrize(("name", "billions"), [("2B", 2.1), ("4B", 4.4), ("8B", 8.8)])
def test_a_preset_has_the_size_in_its_name(name: str, billions: float) -> None:
    assert round(preset(name).num_params / 1e9, 1) == billions


def test_without_a_checkpoint_the_size_in_the_name_chooses_the_preset() -> None:
    for name in PRESETS:
        shape = model_shape(node(f"model.model=/nowhere/Qwen3-VL-{name}-coord"))
        assert shape is not None
        assert shape.source == f"preset {name}"
    assert model_shape(node("model.model=/nowhere/some-model")) is None
    assert model_shape(node("model.model=/nowhere/Qwen3-VL-32B")) is None, "not the 2B"


def test_the_adapter_of_the_production_run_is_what_its_expression_matches() -> None:
    config, shape = node(), preset("8B")
    layer = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 12288)
    merger = (4608 + 4608) + (4608 + 4096)
    magnitudes = 8 * (4096 + 1024 + 1024 + 4096 + 2 * 12288 + 4096) + 4 * (4608 + 4096)
    assert shape.trainable(config.tuner) == 16 * (8 * layer + 4 * merger) + magnitudes


def test_zero_divides_what_it_says_it_divides() -> None:
    config, shape = node("tuner.train_type=full", "tuner.freeze_vit=false", "tuner.use_dora=false"), preset("2B")
    size = shape.num_params
    stages = [learner_memory(shape, config, stage) for stage in range(4)]
    assert stages[0].states == (2 + 2 + 4 + 12) * size
    assert stages[1].states == (2 + 2 + 4 + 12 / 4) * size
    assert stages[2].states == (2 + 4 / 4 + 12 / 4) * size
    assert stages[3].states == 18 / 4 * size
    assert len({stage.activations for stage in stages}) == 1


def test_the_stage_is_the_one_that_the_learner_runs() -> None:
    from learner.settings import LearnerSettings

    fp32 = "deepspeed.config={bf16: {enabled: false}, zero_optimization: {stage: 0}}"
    stages = []
    for more in (["model.torch_dtype=float32", "deepspeed.enabled=false"], ["deepspeed.enabled=false"], [fp32]):
        config = node(*more)
        stages.append(learner_stage(config))
        assert stages[-1] == LearnerSettings.from_config(config, num_steps=1).zero_stage
    assert stages == [0, 1, 0]
    shape, full = preset("2B"), ["tuner.train_type=full", "tuner.freeze_vit=false", "tuner.use_dora=false"]
    assert learner_memory(shape, node(fp32, *full), 0).states == (4 + 4 + 8) * shape.num_params


def test_a_learner_in_turn_with_an_engine_has_the_whole_device() -> None:
    fractions = ["cluster.gpus_per_learner=0.5", "cluster.gpus_per_actor=0.5", "cluster.num_learners=1"]
    tight = [*fractions, f"{MATCHING}.vllm.tensor_parallel_size=1", "tuner.train_type=full", "tuner.use_dora=false"]
    offload = [f"{MATCHING}.offload.{part}=true" for part in ("enabled", "offload_model", "offload_optimizer")]
    turns = [
        "cluster.colocate=true",
        "rollout.num_actors=1",
        "rollout.max_staleness=0",
        "deepspeed.config=zero2",
        *offload,
    ]
    beside, in_turn = (
        [f for f in check_sizing(node(*tight, *more), preset("4B")) if f.where == "deepspeed.config"]
        for more in ([], turns)
    )
    assert [finding.severity for finding in beside] == ["warning"], "Ray's fraction is no limit of memory"
    assert in_turn == []


def test_a_pushed_adapter_and_a_broadcast_need_no_store_for_all_weights() -> None:
    lora = ("tuner.use_dora=false", f"{MATCHING}.vllm.enable_lora=true")
    assert host_memory(preset("8B"), node(*lora)).first_publish < 1e8
    assert host_memory(preset("8B"), node("sync.backend=nccl")).first_publish == 0


def test_a_tied_head_that_is_trained_whole_is_the_embedding() -> None:
    shape, more = preset("4B"), "tuner.modules_to_save=[lm_head]"
    embedding = 152_670 * 2560
    for count in (shape.trainable, shape.published):
        assert count(node(more).tuner) - count(node().tuner) == embedding


def test_what_deepspeed_keeps_in_host_memory_takes_none_of_the_gpu() -> None:
    there = {"device": "cpu"}
    config, shape = node(), preset("2B")
    zero = {"stage": 3, "offload_optimizer": there, "offload_param": there}
    offloading = config.model_copy(update={"deepspeed": DeepSpeedConfig(config={"zero_optimization": zero})})
    kept, moved = (learner_memory(shape, each, 3) for each in (config, offloading))
    assert (moved.weights, moved.optimizer, moved.gradients) == (0, 0, kept.gradients)


def test_a_learners_memory_is_what_was_measured_on_a_gpu_to_a_twentieth() -> None:
    found = json.loads((RESULTS / "model_sizes.json").read_text())
    for size, parts in found["sizes"].items():
        estimate = learner_memory(preset(size), node(*single(), "cluster.num_learners=1"), 2)
        assert estimate.states == pytest.approx(parts["learner"]["states_bytes"], rel=0.05)
        assert estimate.total == pytest.approx(parts["learner"]["peak_bytes"], rel=0.05)


def test_adapters_make_a_layers_working_set_larger_by_their_outputs() -> None:
    shape, outs = preset("8B"), 4096 + 1024 + 1024 + 4096 + 2 * 12288 + 4096
    assert shape.adapted_outs(node().tuner) == 8 * [outs]
    full = node("tuner.train_type=full", "tuner.use_dora=false")
    assert shape.adapted_outs(full.tuner) == []
    dora, lora = (learner_memory(shape, node(*more), 2).activations for more in ((), ("tuner.use_dora=false",)))
    assert dora - lora == 4 * 2 * 16_000 * outs


def test_without_cuda_graphs_a_decode_step_is_not_faster_than_its_launches() -> None:
    shape, load = preset("2B"), Load(prompt_tokens=100, answer_tokens=10)
    eager, graphs = (node(*single(), f"{MATCHING}.vllm.enforce_eager={value}") for value in ("true", "false"))
    slow, fast = (balance(shape, each, load, Device(), engine_memory(shape, each)) for each in (eager, graphs))
    assert slow.actor_tokens_s == pytest.approx(32 / (28 * EAGER_LAYER_S))
    assert fast.actor_tokens_s > 2 * slow.actor_tokens_s


def test_a_layer_is_kept_whole_only_where_nothing_is_computed_again() -> None:
    full = ("tuner.train_type=full", "tuner.use_dora=false", "global_max_length=16000")
    shape, tokens = preset("2B"), 16_000
    layer = 2 * tokens * (8 * 2048 + 3 * 6144)
    again, kept = (
        learner_memory(shape, node(*full, f"training.gradient_checkpointing={value}"), 2) for value in ("true", "false")
    )
    assert (again.activations, kept.activations) == (2 * tokens * 2048 * 28 + layer, 28 * layer)
    assert again.head == kept.head == 3 * HEAD_CHUNK_BYTES + 4 * tokens * 2048


def test_an_engines_cache_is_what_its_weights_leave_of_its_share_of_the_device() -> None:
    shape, gib = preset("2B"), 2**30
    memory = engine_memory(shape, node(*single(), f"{MATCHING}.vllm.gpu_memory_utilization=0.5"))
    assert memory.cache == 80 * gib * 0.5 - 2 * shape.num_params - ENGINE_WORKSPACE
    assert memory.num_full == int(memory.cache / (memory.cache_per_token * node().matching.vllm.max_model_len))
    assert engine_memory(shape, node(*single(), f"{MATCHING}.vllm.gpu_memory_utilization=0.01")).num_full == 0
    small = engine_memory(shape, node(*single(), f"{MATCHING}.vllm.kv_cache_dtype=fp8"))
    assert small.cache_per_token == memory.cache_per_token / 2


def test_a_store_holds_two_later_publishes_and_all_segments_that_are_owed() -> None:
    shape, config = preset("2B"), node("rollout.max_staleness=2", "buffer.max_bytes=1000000000000")
    memory = host_memory(shape, config)
    assert memory.segments == config.training.effective_batch_size * 3 * 32 * config.global_max_length
    assert memory.object_store == memory.first_publish + 2 * memory.later_publish + memory.segments
    assert host_memory(shape, node("buffer.max_bytes=9000000")).segments == 9_000_000
    assert checkpoint_bytes(shape, config) == 2 * shape.num_params + 12 * shape.trainable(config.tuner)


def test_a_window_takes_what_its_tokens_take_on_both_sides() -> None:
    shape, load, device = preset("2B"), Load(prompt_tokens=1000, answer_tokens=500), Device()
    config = node(*single(), f"{MATCHING}.vllm.enforce_eager=false", "training.gradient_checkpointing=true")
    engine = engine_memory(shape, config)
    found = balance(shape, config, load, device, engine)
    window, actors = config.training.effective_batch_size, config.rollout.num_actors
    at_once = min(config.matching.vllm.max_num_seqs, -(-window // actors))
    read = engine.weights + at_once * 1250 * engine.cache_per_token
    step_s = read / (device.bandwidth_gbytes_s * 1e9 * device.decode_efficiency)
    assert found.actor_tokens_s == pytest.approx(at_once / step_s)
    assert found.rollout_s == pytest.approx(window * 500 * step_s / (actors * at_once))
    operations = 6 * shape.num_params + 2 * shape.trainable(config.tuner)
    assert found.learner_tokens_s == pytest.approx(device.tflops * 1e12 * device.train_efficiency / operations)
    assert found.train_s * config.cluster.num_learners == pytest.approx(
        config.m_steps * window * 1500 / found.learner_tokens_s
    )
    needed = found.actors_per_learner * config.cluster.num_learners
    assert found.rollout_s * actors / needed == pytest.approx(found.train_s), "with so many actors neither side waits"


def test_keys_and_values_of_a_token_are_spread_over_the_engines_gpus() -> None:
    one, four = (engine_memory(preset("8B"), node(*over)) for over in (single(), ()))
    assert one.cache_per_token == 2 * 36 * 8 * 128 * 2
    assert four.cache_per_token == one.cache_per_token / 4
    assert four.weights == one.weights / 4


def single() -> list[str]:
    return [f"{MATCHING}.vllm.tensor_parallel_size=1", "cluster.gpus_per_actor=1"]


def test_more_actors_shorten_generation_and_more_ranks_training() -> None:
    shape, load, device = preset("8B"), Load(prompt_tokens=1000, answer_tokens=2000), Device()

    def times(*overrides: str) -> tuple[float, float]:
        config = node(f"{MATCHING}.vllm.enforce_eager=false", *overrides)  # bound by launches, two are as slow as one
        found = balance(shape, config, load, device, engine_memory(shape, config))
        return found.rollout_s, found.train_s

    rollout_s, train_s = times()
    assert times("rollout.num_actors=2")[0] < rollout_s
    assert times("cluster.num_learners=8")[1] == pytest.approx(train_s / 2)


def test_a_publish_after_the_first_holds_only_what_training_can_change() -> None:
    memory = host_memory(preset("8B"), node())
    assert 0.1 < memory.later_publish / memory.first_publish < 0.3, "8 of 36 layers and the mergers"


def test_the_chunk_of_the_head_is_the_learners() -> None:
    from learner.lm_head import CHUNK_BYTES

    assert HEAD_CHUNK_BYTES == CHUNK_BYTES


WRONG: dict[str, tuple[list[str], str]] = {
    "a misspelled setting": (["training.learning_rat=1e-5"], "the nearest is training.learning_rate"),
    "no room for the prompt": ([f"{MATCHING}.vllm.max_model_len=8192"], "must exceed max_new_tokens"),
    "tensor parallel without its GPUs": (["cluster.gpus_per_actor=2"], "give each actor that many GPUs"),
    "tensor parallel that divides no head": (
        [f"{MATCHING}.vllm.tensor_parallel_size=3", "cluster.gpus_per_actor=3"],
        "does not divide",
    ),
    "several GPUs per learner rank": (["cluster.gpus_per_learner=4"], "raise cluster.num_learners"),
    "a buffer smaller than what is owed": (["buffer.max_segments=32"], "must hold effective_batch_size"),
    "a large model on a CPU": (["cluster.gpus_per_learner=0"], "would take years"),
    "an engine without room for its weights": (
        [*single(), f"{MATCHING}.vllm.gpu_memory_utilization=0.2"],
        "weights alone take",
    ),
    "a learner without room for its optimizer": (
        ["tuner.train_type=full", "tuner.use_dora=false", "cluster.num_learners=1"],
        "train an adapter",
    ),
    "an object store smaller than the weights": (["cluster.object_store_bytes=4000000000"], "the first publish has"),
}
"""The ten of docs/troubleshooting.md, each with a part of its sentence."""


@pytest.mark.parametrize("command", ["check", "plan"])
@pytest.mark.parametrize("what", WRONG)
def test_the_ten_likeliest_wrong_configurations_are_refused_with_a_sentence(
    what: str, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    overrides, sentence = WRONG[what]
    assert main([command, "--config", str(NODE), *overrides]) == 2
    printed = capsys.readouterr()
    assert sentence in printed.out + printed.err


def test_what_the_ten_change_was_right_before(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", str(NODE)]) == 0
    assert "estimates; docs/sizing.md says" in " ".join(capsys.readouterr().out.split())


def test_every_wrong_configuration_of_the_page_is_one_of_the_ten() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    for what in WRONG:
        assert what.lower() in page.lower(), f"docs/troubleshooting.md does not list: {what}"


def test_a_model_of_unknown_size_needs_the_name_of_a_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", str(NODE), "model.model=/nowhere/some-model"]) == 2
    assert "--model 2B or 4B or 8B" in capsys.readouterr().err
    assert main(["plan", "--config", str(NODE), "--model", "4B", "model.model=/nowhere/some-model"]) == 0


@pytest.mark.parametrize("given", ["0", "-5", "nan", "many"])
def test_a_mean_length_is_above_0(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["plan", "--config", str(NODE), f"--answer-tokens={given}"])
    assert f"argument --answer-tokens: invalid int above 0 value: '{given}'" in capsys.readouterr().err


def test_shapes_are_read_from_a_config_file_without_a_preset() -> None:
    shape = ModelShape.from_config(PRESETS["2B"], "here")
    assert (shape.hidden, shape.num_layers, shape.num_kv_heads) == (2048, 28, 8)
