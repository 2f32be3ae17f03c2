"""One engine over two worker processes, on CPU: vLLM's own executor, which a GPU's workers come from as well."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

import pytest
import ray
from safetensors.torch import load_file

from actors.attestation import AttestedEngine, Served, compare
from actors.published import check_attested
from actors.settings import ActorSettings
from actors.vllm_environment import engine_environment
from learner.publisher import publish_as_is
from protocol.config import load_config
from protocol.contracts import RequestKey, RolloutRequest
from protocol.records import RecordFile
from tests.integration.conftest import ROOT, processes_with
from tests.learner import tiny

pytestmark = [pytest.mark.integration, pytest.mark.long]

MATCHING = "custom.extra.rollout_matching"
DEADLINE_S = 200


def test_two_workers_serve_what_one_serves_also_after_a_publish_and_end_with_their_actor(
    scenes: Path, tmp_path: Path, cluster: None
) -> None:
    start = tiny.write_checkpoint(tmp_path / "start")
    other = load_file(tiny.write_checkpoint(tmp_path / "other", seed=1) / "model.safetensors")
    records = list(RecordFile(scenes / "train.jsonl"))[:2]
    requests = [RolloutRequest(key=RequestKey(each.index), record=each, seed=0) for each in records]
    served = {}
    for workers in (1, 2):
        marker = uuid.uuid4().hex
        settings = tiny_settings(start, scenes, workers)
        engine = start_engine(settings, marker)
        before = ask(engine.served.remote(requests))
        *buckets, manifest = publish_as_is(other.items(), 1, 100_000)
        check_attested("engine", ask(engine.load.remote(manifest, [ray.put(each) for each in buckets])), manifest)
        served[workers] = before, ask(engine.served.remote(requests))
        assert len(processes_with(marker)) >= (1 if workers == 1 else 3), "the actor, and a process for each worker"
        ray.kill(engine)
        wait_until_gone(marker)
    for one, two in zip(served[1], served[2], strict=True):
        assert_same_answers(one, two)
    moved = compare(*served[2])
    assert len(moved.differing_answers) == len(requests)


def tiny_settings(start: Path, scenes: Path, workers: int) -> ActorSettings:
    overrides = [f"model.model={start}", f"custom.train_jsonl={scenes / 'train.jsonl'}", "custom.val_jsonl=null"]
    overrides += ["training.eval_steps=null", f"{MATCHING}.max_new_tokens=12"]
    overrides += [f"{MATCHING}.vllm.tensor_parallel_size={workers}", "cluster.cpus_per_actor=1"]
    return ActorSettings.from_config(load_config(ROOT / "configs" / "demo.yaml", overrides=overrides))


def start_engine(settings: ActorSettings, marker: str) -> Any:
    cores = sorted(os.sched_getaffinity(0))
    pinned = "|".join(str(cores[rank % len(cores)]) for rank in range(settings.engine.options["tensor_parallel_size"]))
    # vLLM gives each CPU worker a NUMA node of its own, and asks to be told where there are fewer nodes.
    mine = {"VLLM_CPU_OMP_THREADS_BIND": pinned, "ROLLMATCH_TEST_MARKER": marker}
    environment = engine_environment(settings.engine) | mine
    return ray.remote(AttestedEngine).options(num_cpus=1, runtime_env={"env_vars": environment}).remote(settings)


def ask(reference: Any) -> Any:
    return ray.get(reference, timeout=DEADLINE_S)


def assert_same_answers(one: Served, two: Served) -> None:
    """Each worker names and digests its own part of the weights, so answers and probabilities are what is compared."""
    found = compare(Served({}, one.probes), Served({}, two.probes))
    assert found.same, found


def wait_until_gone(marker: str) -> None:
    began = time.monotonic()
    while alive := processes_with(marker):
        assert time.monotonic() - began < 30, f"still alive: {alive}"
        time.sleep(0.2)
