"""What only a GPU shows: engine and learner on one device, by turns and side by side; states that leave it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.learner import join_alone
from deploy.cli import main
from deploy.launch import train
from learner.settings import TunerSettings
from learner.worker import LearnerWorker
from protocol.config import load_config
from tests.integration.conftest import ON_GPU, ROOT
from tests.learner import tiny

pytestmark = [pytest.mark.integration, pytest.mark.skipif(not ON_GPU, reason="needs a GPU and vLLM's build for CUDA")]

MATCHING = "custom.extra.rollout_matching"
ONE_GPU = [
    "model.torch_dtype=bfloat16",
    "deepspeed.config=zero2",
    "cluster.gpus_per_actor=0.5",
    "cluster.gpus_per_learner=0.5",
    f"{MATCHING}.vllm.enforce_eager=true",
    f"{MATCHING}.vllm.gpu_memory_utilization=0.4",
]
BY_TURNS = [
    "cluster.colocate=true",
    *(f"{MATCHING}.offload.{name}=true" for name in ("enabled", "offload_model", "offload_optimizer")),
]
SIDE_BY_SIDE = ["rollout.max_staleness=1", "sync.in_flight=continue"]


@pytest.mark.parametrize("manner", [BY_TURNS, SIDE_BY_SIDE], ids=["by turns", "side by side"])
def test_engine_and_learner_share_a_gpu_and_an_engine_serves_what_was_exported(
    manner: list[str], arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = arguments(*ONE_GPU, *manner, "training.max_steps=3", "training.eval_steps=null")
    summary = train(load_config(ROOT / "configs" / "demo.yaml", overrides=overrides))
    found = [summary[name] for name in ("steps", "policy_versions", "restarts", "learner_restarts")]
    assert found == [3, 3, 0, 0]
    checkpoint = tmp_path / "run" / "checkpoint-3"
    attest = ["--attest", str(checkpoint), "--attest_records", "2"]
    assert main(["evaluate", "--config", "configs/demo.yaml", *attest, *overrides]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])


def test_states_that_left_the_gpu_free_it_and_come_back_unchanged(tmp_path: Path) -> None:
    join_alone()
    start = tiny.write_checkpoint(tmp_path / "model", hidden_size=1024, intermediate_size=4096, num_hidden_layers=4)
    segments = [tiny.make_segment(tmp_path, number) for number in range(4)]
    stays = tiny.settings(
        start, torch_dtype="bfloat16", tuner=TunerSettings(), deepspeed={"zero_optimization": {"stage": 2}}
    )
    losses = {}
    # Moving comes first, because the GPU still holds states of the worker before.
    for name, settings in {"moves": replace(stays, offload=("model", "optimizer")), "stays": stays}.items():
        worker = LearnerWorker(settings)
        losses[name] = []
        for version in range(3):
            losses[name].append(worker.train_step([segments]).loss)
            held = torch.cuda.memory_allocated()
            list(worker.publish(version, full=True))
            if settings.offload:
                assert torch.cuda.memory_allocated() < 0.1 * held
        del worker
    assert losses["moves"] == pytest.approx(losses["stays"], rel=0.01)  # sums on a GPU have no fixed order
