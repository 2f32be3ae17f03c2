"""The sizes' part of `rollmatch check` and `rollmatch plan`: what cannot fit, before a machine is asked for it.

Errors rest on exact counts: weights and optimizer states alone are too large. What rests on an estimate is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator

from deploy.findings import Finding, error, warning
from deploy.model_shape import ModelShape
from deploy.sizing import GIB, engine_memory, host_memory, learner_memory, learner_stage
from protocol.config import RunConfig
from protocol.config.rules import MATCHING
from protocol.errors import ConfigError

VLLM = f"{MATCHING}.vllm"
CPU_LIMIT = 1_000_000_000
"""Parameters above which a CPU is surely not meant."""


def check_sizing(config: RunConfig, shape: ModelShape | None) -> Iterator[Finding]:
    """Sizes that cannot work together; nothing where the model is unknown, except what needs no model."""
    yield from _pods(config)
    if shape is None:
        return
    yield from _devices(config, shape)
    yield from _engine(config, shape)
    yield from _learner(config, shape)
    yield from _store(config, shape)


def _pods(config: RunConfig) -> Iterator[Finding]:
    most = config.kubernetes.gpus_per_node
    if config.cluster.gpus_per_actor > most:
        yield error(
            "cluster.gpus_per_actor",
            f"is {config.cluster.gpus_per_actor:g}, more than the {most} GPUs of a node (kubernetes.gpus_per_node); "
            "an engine lives on one node: lower vllm.tensor_parallel_size",
        )


def _devices(config: RunConfig, shape: ModelShape) -> Iterator[Finding]:
    for name in ("gpus_per_learner", "gpus_per_actor"):
        if getattr(config.cluster, name) == 0 and shape.num_params > CPU_LIMIT:
            yield error(
                f"cluster.{name}",
                f"is 0, and {shape.num_params / 1e9:.1f} billion parameters on a CPU would take years; give it GPUs",
            )


def _engine(config: RunConfig, shape: ModelShape) -> Iterator[Finding]:
    vllm = config.matching.vllm
    parallel = vllm.tensor_parallel_size
    if shape.num_heads % parallel or (shape.num_kv_heads % parallel and parallel % shape.num_kv_heads):
        yield error(
            f"{VLLM}.tensor_parallel_size",
            f"is {parallel}, which does not divide {shape.num_heads} attention heads ({shape.num_kv_heads} of keys); "
            "write 1, 2, 4 or 8",
        )
        return
    if config.cluster.gpus_per_actor == 0 or config.matching.rollout_backend != "vllm":
        return
    memory = engine_memory(shape, config)
    given = config.cluster.gpu_memory_gib * vllm.gpu_memory_utilization
    if memory.weights / GIB >= given:
        yield error(
            f"{VLLM}.gpu_memory_utilization",
            f"leaves {given:.0f} GiB of each GPU and the weights alone take {memory.weights / GIB:.0f} GiB; raise it, "
            "or tensor_parallel_size",
        )
    elif memory.num_full < 1:
        yield warning(
            f"{VLLM}.max_model_len",
            f"the cache would hold less than one rollout of {vllm.max_model_len} tokens (estimated); lower it, or "
            "raise gpu_memory_utilization",
        )


def _learner(config: RunConfig, shape: ModelShape) -> Iterator[Finding]:
    if config.cluster.gpus_per_learner == 0:
        return
    try:
        memory = learner_memory(shape, config, learner_stage(config))
    except ConfigError:
        return  # reported with the settings
    # In turn with an engine, a rank has the whole device; beside one, Ray's fraction says how much is meant for it.
    share = 1.0 if config.cluster.colocate else config.cluster.gpus_per_learner
    given = config.cluster.gpu_memory_gib * share
    if memory.states / GIB > given:
        finding = error if share == 1 else warning
        yield finding(
            "deepspeed.config",
            f"weights, gradients and optimizer take {memory.states / GIB:.0f} GiB per learner rank, a rank has "
            f"{given:.0f}; train an adapter (tuner.train_type: lora), raise the ZeRO stage, or add ranks",
        )
    elif memory.total / GIB > 0.95 * given:
        yield warning(
            "global_max_length",
            f"a full pack brings a learner rank to {memory.total / GIB:.0f} GiB of {given:.0f} (estimated); lower it, "
            "or set training.gradient_checkpointing",
        )


def _store(config: RunConfig, shape: ModelShape) -> Iterator[Finding]:
    given, memory = config.cluster.object_store_bytes, host_memory(shape, config)
    if given is not None and given < memory.first_publish:
        yield error(
            "cluster.object_store_bytes",
            f"is {given / GIB:.1f} GiB and the first publish has {memory.first_publish / GIB:.1f} GiB of weights; "
            f"give it {memory.object_store / GIB:.0f} GiB",
        )
    elif given is not None and given < memory.object_store:
        yield warning(
            "cluster.object_store_bytes",
            f"is {given / GIB:.0f} GiB; weights and segments may take {memory.object_store / GIB:.0f} GiB (estimated), "
            "and Ray would spill to disk; raise it",
        )
