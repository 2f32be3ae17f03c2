"""How much memory a run needs and how its two sides balance: formulas, no I/O. docs/sizing.md derives them.

Everything here is an estimate, except the counts of parameters. `python -m benchmarks.model_sizes` holds a learner rank
and an engine against it on a GPU; what was measured so far stands in docs/sizing.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from deploy.model_shape import ModelShape
from learner.settings import LearnerSettings, OptimizerSettings
from protocol.config import RunConfig

GIB = 2**30
HEAD_CHUNK_BYTES = 224 * 2**20
"""Logits of one chunk: `learner.lm_head.CHUNK_BYTES`, which a test compares; importing it would import torch."""
ADAPTER_COPIES = {True: 7, False: 3}
"""Tensors as large as an adapted layer's output that are alive in its backward. With DoRA fitted to what a 4B and an 8B
learner took on an H100; without it assumed."""
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU, and how much of it is reached. Defaults: an 80 GB H100 by its data sheet."""

    bandwidth_gbytes_s: float = 3350.0
    tflops: float = 990.0
    decode_efficiency: float = 0.4
    """Share of the bandwidth that decoding reaches (assumed)."""
    train_efficiency: float = 0.35
    """Share of the arithmetic that training reaches (assumed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Mean lengths of the data."""

    prompt_tokens: int
    answer_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerMemory:
    """Bytes on one learner rank."""

    weights: float
    gradients: float
    optimizer: float
    activations: float
    head: float

    @property
    def states(self) -> float:
        """What is there at any length of the packs."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> float:
        return self.states + self.activations + self.head


def learner_memory(shape: ModelShape, config: RunConfig, stage: int) -> LearnerMemory:
    """Bytes on the device per rank with ZeRO `stage` over W ranks, N parameters, of which T are trained, d bytes each.

    weights d·N (/W at stage 3); gradients 4·T, which are summed in fp32 (/W from stage 2), and below stage 2 in 16 bits
    2·T more, as they come; optimizer (4 + 8)·T: fp32 copy and two Adam moments
    (/W from stage 1; without the copy in fp32). Activations of a pack of C = `global_max_length` tokens: with
    checkpointing d·C·H per layer and one layer's working set, without it the working set of every layer; a layer's
    working set is d·C·(8·H + 3·I), and ADAPTER_COPIES·d·C per output of its layers that have an adapter. Head: three
    chunks of logits and the gradient of the hidden states. What DeepSpeed offloads (`offload_optimizer`,
    `offload_param`) is in host memory and not counted.
    """
    ranks, width = config.cluster.num_learners, DTYPE_BYTES[_learner(config).compute_dtype]
    trained, adam = shape.trainable(config.tuner), 8 if width == 4 else 12
    tokens = config.global_max_length
    layer = width * tokens * (8 * shape.hidden + 3 * shape.inner)
    copies = ADAPTER_COPIES[config.tuner.use_dora]
    adapters = [copies * width * tokens * outs for outs in shape.adapted_outs(config.tuner)]
    kept = width * tokens * shape.hidden * shape.num_layers + layer + max(adapters, default=0)
    return LearnerMemory(
        weights=0 if config.deepspeed.offloads("param") else width * shape.num_params / (ranks if stage >= 3 else 1),
        gradients=4 * trained / ranks if stage >= 2 else (6 if width == 2 else 4) * trained,
        optimizer=0 if config.deepspeed.offloads("optimizer") else adam * trained / (ranks if stage >= 1 else 1),
        activations=kept if config.training.gradient_checkpointing else layer * shape.num_layers + sum(adapters),
        head=3 * HEAD_CHUNK_BYTES + 4 * tokens * shape.hidden,
    )


def learner_stage(config: RunConfig) -> int:
    """The ZeRO stage that the learner runs: in 16 bits at least 1."""
    return _learner(config).zero_stage


def _learner(config: RunConfig) -> LearnerSettings:
    """What the learner's dtype and stage rest on, without the prompts, whose files may be elsewhere."""
    return LearnerSettings(
        model=config.model.model,
        system_prompt="",
        user_prompt="",
        optimizer=OptimizerSettings.from_config(config.training),
        torch_dtype=config.model.torch_dtype,
        deepspeed=config.deepspeed.resolve(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineMemory:
    """Bytes on each GPU of one engine."""

    weights: float
    cache_per_token: float
    cache: float
    """What is left for the key-value cache; negative where the weights alone are too large."""
    num_full: int
    """Rollouts of `max_model_len` tokens that the cache holds at once."""


def engine_memory(shape: ModelShape, config: RunConfig) -> EngineMemory:
    """Bytes per GPU of an engine over t GPUs: weights d·N/t; a token's keys and values 2·L·(KV heads/t)·head_dim·d."""
    vllm = config.matching.vllm
    parallel = vllm.tensor_parallel_size
    width = DTYPE_BYTES[vllm.dtype or config.model.torch_dtype]
    cached = 1 if (vllm.kv_cache_dtype or "").startswith("fp8") else width
    heads = max(1, shape.num_kv_heads // parallel)
    per_token = 2 * shape.num_layers * heads * shape.head_dim * cached
    weights = width * shape.num_params / parallel
    cache = config.cluster.gpu_memory_gib * GIB * vllm.gpu_memory_utilization - weights - ENGINE_WORKSPACE
    full = int(max(0.0, cache) / (per_token * max(1, vllm.max_model_len)))
    return EngineMemory(weights=weights, cache_per_token=per_token, cache=cache, num_full=full)


EAGER_LAYER_S = 0.9e-3
"""Seconds of one layer in a decode step that is bound by launches: a 4B engine's 35 ms of 36 layers, on an H100."""
ENGINE_WORKSPACE = 2 * GIB
"""Activations and graphs of an engine (assumed)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostMemory:
    """Bytes on the driver's side."""

    first_publish: float
    later_publish: float
    segments: float
    """Most bytes of segments that wait."""

    @property
    def object_store(self) -> float:
        """The first publish stays for engines that restart; a later one is held twice while it replaces another."""
        return self.first_publish + 2 * self.later_publish + self.segments


def host_memory(shape: ModelShape, config: RunConfig) -> HostMemory:
    """A publish holds merged weights at d bytes: all of them at first, then the layers that training can change.

    A pushed adapter (`vllm.enable_lora`) is all that is published; a broadcast (`sync.backend: nccl`) leaves nothing.
    """
    width = DTYPE_BYTES[config.model.torch_dtype] if config.sync.backend == "object_store" else 0
    adapter = shape.trainable(config.tuner) if config.matching.vllm.enable_lora else None
    owed = config.training.effective_batch_size * (config.rollout.max_staleness + 1)
    return HostMemory(
        first_publish=width * (shape.num_params if adapter is None else adapter),
        later_publish=width * (shape.published(config.tuner) if adapter is None else adapter),
        segments=min(config.buffer.max_bytes, owed * SEGMENT_BYTES_PER_TOKEN * config.global_max_length),
    )


SEGMENT_BYTES_PER_TOKEN = 32
"""Ids, labels, positions and bins of a segment, rounded up; pixels are never part of one."""


def checkpoint_bytes(shape: ModelShape, config: RunConfig) -> int:
    """Of a checkpoint, at least: the merged model, d·N, and the masters and both moments of what is trained, 12·T."""
    return DTYPE_BYTES[config.model.torch_dtype] * shape.num_params + 12 * shape.trainable(config.tuner)


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """Seconds that each side needs for one window."""

    actor_tokens_s: float
    """Answer tokens per second of one actor."""
    learner_tokens_s: float
    """Training tokens per second of one rank."""
    rollout_s: float
    train_s: float
    actors_per_learner: float
    """Ratio at which both sides take equally long."""


def balance(shape: ModelShape, config: RunConfig, load: Load, device: Device, engine: EngineMemory) -> Balance:
    """Decoding is bound by memory, training by arithmetic.

    One decode step of n rollouts reads the weights and n caches of the mean length; a training token costs 2·N forward,
    2·N for the gradient of activations, 2·T for that of weights, and 2·N again with checkpointing. Without CUDA graphs
    a decode step takes EAGER_LAYER_S per layer at least: kernels are launched one by one.
    """
    window, actors = config.training.effective_batch_size, config.rollout.num_actors
    mean = load.prompt_tokens + load.answer_tokens / 2
    fits = int(max(0.0, engine.cache) / (engine.cache_per_token * mean))
    at_once = max(1, min(config.matching.vllm.max_num_seqs, math.ceil(window / actors), fits))
    step_s = (engine.weights + at_once * mean * engine.cache_per_token) / (
        device.bandwidth_gbytes_s * 1e9 * device.decode_efficiency
    )
    if config.matching.vllm.enforce_eager:
        step_s = max(step_s, EAGER_LAYER_S * shape.num_layers)
    actor_tokens = at_once / step_s
    again = 2 * shape.num_params if config.training.gradient_checkpointing else 0
    per_token = 4 * shape.num_params + 2 * shape.trainable(config.tuner) + again
    learner_tokens = device.tflops * 1e12 * device.train_efficiency / per_token
    rollout_s = window * load.answer_tokens / (actors * actor_tokens)
    tokens = config.m_steps * window * (load.prompt_tokens + load.answer_tokens)
    train_s = tokens / (config.cluster.num_learners * learner_tokens)
    return Balance(
        actor_tokens_s=actor_tokens,
        learner_tokens_s=learner_tokens,
        rollout_s=rollout_s,
        train_s=train_s,
        actors_per_learner=rollout_s / train_s * actors / config.cluster.num_learners,
    )
