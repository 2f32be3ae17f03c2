"""`rollmatch check`: everything that is wrong with a run, at once, before anything is started.

    settings ─► prompts, DeepSpeed file, metric, address, folders  this file
    sizes    ─► what cannot fit into GPUs and object store         check_sizing
    data     ─► lines and images of both JSONL files               check_data
    lengths  ─► tokens of answers and training rows                check_lengths
    saving   ─► how much a crash costs, room for checkpoints       check_saving
    model    ─► config, tokenizer, processor, weight headers       check_model

Imports neither torch nor vllm, and loads no weights: it runs on a laptop in seconds. Ray is imported where it is to
say how many GPUs this machine has.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shutil
from collections.abc import Callable, Iterator
from ctypes.util import find_library
from pathlib import Path

from deploy.bundles import Node, never_fits, shares, totals
from deploy.check_data import check_data
from deploy.check_encoder import check_encoder
from deploy.check_model import check_model
from deploy.check_sizing import check_sizing
from deploy.cluster_address import head_of
from deploy.findings import Finding, error, print_findings, warning
from deploy.model_shape import model_shape
from learner.deepspeed_json import read_json
from protocol.config import RunConfig
from protocol.errors import ConfigError, refuse
from protocol.metric_table import check_evaluation_metric
from protocol.prompts import resolve_prompts

__all__ = ["Finding", "check_run", "print_findings", "require_clean"]


def check_run(config: RunConfig, *, learners: bool = True) -> list[Finding]:
    """Everything there is to say about the run, or with `learners=False` about an evaluation; errors are what would
    make it fail."""
    model, image_rules = check_model(config)
    sizes = check_sizing(config, model_shape(config))
    return [*_settings(config), *_room(config, learners), *sizes, *check_data(config, image_rules), *model]


def require_clean(config: RunConfig, *, learners: bool = True) -> None:
    """ConfigError that lists all errors of `check_run`; returns where there is none."""
    refuse([str(finding) for finding in check_run(config, learners=learners) if finding.is_error])


def _settings(config: RunConfig) -> Iterator[Finding]:
    """Settings that name something outside the run file."""
    yield from _raised(lambda: resolve_prompts(config))
    yield from _raised(lambda: check_evaluation_metric(config.training.metric_for_best_model))
    yield from _deepspeed(config)
    address = config.cluster.address
    if address is not None:
        yield from _raised(lambda: head_of(address))
    yield from _folders(config)
    yield from _machine(config)
    if config.model.attn_impl == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        yield error("model.attn_impl", "flash_attention_2 needs the package flash-attn, which is missing; write sdpa")
    if "wandb" in config.training.report_to and importlib.util.find_spec("wandb") is None:
        yield error(
            "training.report_to", "wandb needs the package wandb, which is missing; install it, or remove the name"
        )
    parallel = config.matching.vllm.tensor_parallel_size
    if parallel > 1 and config.cluster.gpus_per_actor == 0 and config.matching.rollout_backend == "vllm":
        yield error(
            "custom.extra.rollout_matching.vllm.tensor_parallel_size",
            f"is {parallel} but cluster.gpus_per_actor is 0; give each actor {parallel} GPUs, or write 1",
        )
    if config.matching.vllm.swap_space is not None:
        yield warning(
            "custom.extra.rollout_matching.vllm.swap_space",
            "has no effect: vLLM computes a preempted rollout's cache again instead of swapping it; remove the key",
        )
    yield from check_encoder(config)


def _raised(call: Callable[[], object]) -> Iterator[Finding]:
    """The ConfigError of a call as a finding."""
    try:
        call()
    except ConfigError as raised:
        where, _, message = str(raised).partition(": ")
        yield error(where, message)


def _deepspeed(config: RunConfig) -> Iterator[Finding]:
    dtype, moved = config.model.torch_dtype, config.matching.offload.parts
    yield from _raised(lambda: read_json(config.deepspeed.resolve(), dtype, moved))


def _machine(config: RunConfig) -> Iterator[Finding]:
    """What no package brings along, where the run's processes live on this machine."""
    if config.cluster.address is not None:
        return
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        yield error("this machine", "has no C++ compiler, and DeepSpeed builds with one; install g++")
    if config.matching.rollout_backend == "vllm" and config.cluster.gpus_per_actor == 0 and not find_library("numa"):
        yield error("this machine", "has no libnuma, and vLLM's CPU kernels are linked with it; install libnuma1")


def _room(config: RunConfig, learners: bool) -> Iterator[Finding]:
    """Whether this machine holds what the run places, where its cluster is a private one."""
    if config.cluster.address is not None:
        return
    wanted = shares(config, learners=learners)
    asked, cores = totals(wanted), os.cpu_count()
    actors = totals([share for share in wanted if share.role == "actor"])["CPU"]
    takes_turns = config.rollout.max_staleness == 0
    at_once = max(actors, asked["CPU"] - actors) if takes_turns else asked["CPU"]
    if cores is not None and at_once > cores:
        yield warning(
            "cluster.cpus_per_actor",
            f"what works at a time asks for {at_once:g} CPUs, and this machine has {cores} cores; CPUs are logical, so "
            "the processes share the cores: lower cpus_per_actor and cpus_per_learner if that is slow",
        )
    gpus = _num_gpus() if asked.get("GPU") else 0
    problem = never_fits(wanted, [Node({"CPU": math.ceil(asked["CPU"]), "GPU": gpus}, {})])
    if problem is not None:
        yield error(
            "cluster.address",
            f"is null, so this machine with its {gpus} GPUs is the cluster: {problem}; ask for less in cluster.* and "
            "rollout.num_actors, or name a cluster",
        )


def _num_gpus() -> int:
    """What a local Ray would offer: the machine's GPUs, as far as CUDA_VISIBLE_DEVICES shows them."""
    from ray._private.accelerators import get_accelerator_manager_for_resource

    manager = get_accelerator_manager_for_resource("GPU")
    found: int = manager.get_current_node_num_accelerators()
    visible = manager.get_current_process_visible_accelerator_ids()
    return found if visible is None else min(found, len(visible))


def _folders(config: RunConfig) -> Iterator[Finding]:
    resume = config.training.resume
    if resume not in ("never", "auto") and not Path(resume).is_dir():
        yield error("training.resume", f"{resume} is no folder; write never, auto or a checkpoint folder")
    if config.cluster.address is not None and not Path(config.training.output_dir).is_absolute():
        yield warning(
            "training.output_dir",
            f"{config.training.output_dir} is relative, and on a joined cluster each process counts from its own "
            "folder; write an absolute path on storage that every node sees",
        )
    for path, folder in (("training.output_dir", config.run_dir), ("training.logging_dir", config.logging_dir)):
        existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            yield error(path, f"{folder} cannot be created, {existing} is not writable; choose another folder")
