"""A pool of real vLLM engines with the demo model, for the fault suite."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ray
import torch
from safetensors.torch import load_file

from actors.pool import RolloutPool
from actors.rollout_actor import THREADS
from actors.settings import ActorSettings
from actors.supervision import PoolSettings
from actors.vllm_environment import engine_environment
from deploy.demo.scenes import write_scenes
from protocol.checksums import bucket_checksum
from protocol.config import load_config
from protocol.records import RecordFile
from protocol.weights import TensorEntry, WeightsManifest
from tests.faults.faulty_actors import FaultyVllmActor
from tests.faults.harness import CountingLearner, FaultRun
from tests.faults.simulated import TwoNodes

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "deploy" / "demo" / "model"
RECORDS = 64


class ScaledNorm:
    """Publishes the checkpoint: version v with its last norm's weight grown by v percent."""

    def __init__(self) -> None:
        self._tensors = load_file(MODEL / "model.safetensors")
        self._norm = next(name for name in self._tensors if name.endswith("language_model.norm.weight"))

    def __call__(self, version: int) -> tuple[WeightsManifest, list[Any]]:
        tensors = dict(self._tensors) if version == 0 else {}
        tensors[self._norm] = self._tensors[self._norm] * (1 + version / 100)
        bucket = tuple(tensor.contiguous().flatten().view(torch.uint8).numpy() for tensor in tensors.values())
        entries = tuple(
            TensorEntry(
                name=name,
                dtype=str(tensor.dtype).removeprefix("torch."),
                shape=tuple(tensor.shape),
                bucket=0,
                index=index,
                num_bytes=tensor.nbytes,
            )
            for index, (name, tensor) in enumerate(tensors.items())
        )
        manifest = WeightsManifest(
            version=version,
            full=version == 0,
            tensors=entries,
            bucket_checksums=(bucket_checksum(bucket),),
            changed_tensors=1,
        )
        return manifest, [ray.put(bucket)]


def vllm_run(
    nodes: TwoNodes | None,
    *,
    scratch: Path,
    seed: int,
    num_actors: int = 2,
    max_staleness: int = 1,
    in_flight: Any = "drain",
) -> FaultRun:
    """Two engines; each restart loads the model anew, so deadlines are those of a slow machine."""
    if not (scratch / "train.jsonl").exists():
        write_scenes(scratch, "train", RECORDS, seed=5)
    config = load_config(ROOT / "configs" / "demo.yaml", overrides=[f"custom.train_jsonl={scratch / 'train.jsonl'}"])
    settings = ActorSettings.from_config(config)
    settings = dataclasses.replace(settings, engine=dataclasses.replace(settings.engine, model=str(MODEL)))
    remote = ray.remote(
        num_cpus=0,
        concurrency_groups=THREADS,
        runtime_env={"env_vars": engine_environment(settings.engine)},
    )(FaultyVllmActor)

    def spawn(name: str) -> Any:
        first = nodes is not None and name.startswith("actor-0")
        return remote.options(resources={"losable": 1} if first else {}).remote(settings)

    limits = PoolSettings(
        num_actors=num_actors,
        max_in_flight_per_actor=64,
        startup_timeout_s=300,
        stall_timeout_s=20,
        sync_timeout_s=60,
        max_restarts=5,
        max_retries=5,
        in_flight=in_flight,
        heartbeat_s=1,
        restart_backoff_s=0.1,
    )
    return FaultRun(
        pool=RolloutPool(limits, spawn, None),
        records=RecordFile(scratch / "train.jsonl", ordering="sorted", seed=seed),
        learner=CountingLearner(ScaledNorm(), step_s=0.5),
        max_staleness=max_staleness,
        recovery_s=400,
        lose_node=nodes.lose if nodes else None,
        seed=seed,
    )
