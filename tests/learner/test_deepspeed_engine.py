"""The door to DeepSpeed, with one rank at most."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import deepspeed
import pytest
import torch
from safetensors.torch import load_file, save_file

from learner import worker as worker_module
from learner.deepspeed_engine import TrainEngine, _optimizer, join
from learner.settings import LearnerSettings, ScheduleSettings
from learner.worker import LearnerWorker
from protocol.errors import ConfigError, ContractError
from protocol.segments import Segment
from protocol.weights import WeightsManifest
from tests.integration.learner_cases import unpack
from tests.learner import tiny
from tests.learner.merging import DORA


def test_without_a_compiler_an_offloaded_optimizer_is_refused_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    settings = tiny.settings(Path("x"), deepspeed={"zero_optimization": zero})
    groups = [{"params": [torch.nn.Parameter(torch.ones(4))], "lr": 1e-3, "weight_decay": 0.0}]
    with pytest.raises(ConfigError, match=r"^deepspeed\.config: zero_optimization\.offload_optimizer needs .*cpu_adam"):
        _optimizer(groups, settings, {"zero_optimization": zero})


@pytest.fixture
def one_rank(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    # For a line of its log it collects garbage four times a group, which takes ten seconds here.
    monkeypatch.setattr("deepspeed.runtime.bf16_optimizer.see_memory_usage", lambda *_, **__: None)
    join(tiny.settings(checkpoint))
    yield
    deepspeed.comm.destroy_process_group()


def worker(settings: LearnerSettings, **optimizer: Any) -> LearnerWorker:
    return LearnerWorker(replace(settings, optimizer=tiny.optimizer(**optimizer)))


def options(of: TrainEngine) -> list[tuple[Any, ...]]:
    groups = of._engine.basic_optimizer.param_groups
    return [tuple(group[name] for name in ("name", "weight_decay", "betas", "eps")) for group in groups]


@pytest.mark.parametrize(
    ("stage", "dtype"), [(0, "float32"), (1, "bfloat16"), (2, "bfloat16"), (2, "float32"), (3, "float32")]
)
def test_a_resume_takes_weight_decay_betas_epsilon_and_clipping_from_its_own_settings(
    one_rank: None, checkpoint: Path, segments: list[Segment], tmp_path: Path, stage: int, dtype: str
) -> None:
    settings = tiny.settings(checkpoint, torch_dtype=dtype, deepspeed={"zero_optimization": {"stage": stage}})
    first = worker(settings, weight_decay=0.0, beta1=0.8, beta2=0.999, epsilon=1e-8, max_grad_norm=1.0)
    first.train_step([segments])
    first.save_checkpoint(tmp_path)

    resumed = worker(settings, weight_decay=0.1, beta1=0.9, beta2=0.95, epsilon=1e-6, max_grad_norm=0.5)
    fresh = options(resumed._engine)
    assert {weight_decay for _, weight_decay, *_ in fresh} == {0.1, 0.0}, "vectors are not decayed"
    resumed.load_checkpoint(tmp_path)
    assert options(resumed._engine) == fresh
    assert getattr(resumed._engine._optimizer, "clip_grad", 0.5) == 0.5
    state = resumed._engine._engine.basic_optimizer.state
    assert any(values["exp_avg"].any() for values in state.values()), "the moments are those that were saved"


@pytest.fixture
def in_16_bits(tmp_path: Path) -> Path:
    """A checkpoint whose files hold bfloat16, with rows of many lengths."""
    start = tiny.write_checkpoint(tmp_path / "start")
    stored = {name: tensor.bfloat16() for name, tensor in load_file(start / "model.safetensors").items()}
    save_file(stored, start / "model.safetensors", metadata={"format": "pt"})
    return start


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_dora_in_16_bits_serves_the_checkpoint_itself_before_a_step(
    one_rank: None, in_16_bits: Path, segments: list[Segment], stage: int
) -> None:
    zero = {"zero_optimization": {"stage": stage}}
    learner = LearnerWorker(tiny.settings(in_16_bits, torch_dtype="bfloat16", tuner=DORA, deepspeed=zero))
    *buckets, manifest = learner.publish(0, True)
    assert isinstance(manifest, WeightsManifest)
    served, stored = unpack(manifest, buckets), load_file(in_16_bits / "model.safetensors")
    assert served.keys() == stored.keys()
    assert [name for name, tensor in stored.items() if (served[name] != tensor.float().numpy()).any()] == []
    assert "rounding_lost_share" not in manifest.extra, "the merge moved nothing"

    assert not learner.train_step([segments]).skipped
    *_, manifest = learner.publish(1, False)
    assert isinstance(manifest, WeightsManifest)
    assert manifest.changed_tensors > 0


def test_a_learner_that_would_serve_something_else_before_a_step_does_not_start(
    one_rank: None, in_16_bits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "exact_magnitudes", lambda *_: ())
    zero = {"zero_optimization": {"stage": 2}}
    with pytest.raises(
        ContractError, match=r"before any step \d+ of 26 merged tensors differ .*without tuner\.use_dora"
    ):
        LearnerWorker(tiny.settings(in_16_bits, torch_dtype="bfloat16", tuner=DORA, deepspeed=zero))


def test_a_publish_tells_the_largest_rate_over_the_parts_and_steps_that_were_applied(
    one_rank: None, checkpoint: Path, segments: list[Segment]
) -> None:
    schedule = ScheduleSettings(kind="linear", max_steps=4)
    learner = worker(tiny.settings(checkpoint, schedule=schedule), learning_rate=1e-4, vit_lr=2e-4, max_grad_norm=0.0)
    told = []
    for steps in (2, 1):
        for _ in range(steps):
            assert not learner.train_step([segments]).skipped
        *_, manifest = learner.publish(len(told), False)
        assert isinstance(manifest, WeightsManifest)
        told.append(manifest.extra["largest_learning_rate"])
    assert told == pytest.approx([2e-4, 1e-4])
