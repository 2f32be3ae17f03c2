"""Rules between sections of a run file. Each yields problems. Only `_offload` reads a file, DeepSpeed's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from protocol.config.base import Problem
from protocol.errors import ConfigError
from protocol.segments import segment_bytes

if TYPE_CHECKING:
    from protocol.config.run import RunConfig

MATCHING = "custom.extra.rollout_matching"
MOST_SERVED_RANK = 512
"""The last of `actors.adapter.RANKS`."""


def cross_problems(config: RunConfig) -> Iterator[Problem]:
    """Every pair of settings that cannot work together."""
    for rule in (
        _data,
        _generation,
        _adapter,
        _precision,
        _schedule,
        _carry,
        _capacity,
        _devices,
        _queue,
        _offload,
        _colocation,
    ):
        yield from rule(config)


def _data(config: RunConfig) -> Iterator[Problem]:
    custom = config.custom
    if custom.fusion_config is not None:
        message = (
            f"mixtures are not supported, got {custom.fusion_config!r}; concatenate the files as custom.train_jsonl"
        )
        yield Problem(("custom.fusion_config",), message)
    if custom.coord_tokens.enabled is False:
        message = "must not be false: the parser reads coordinate tokens only; remove the key"
        yield Problem(("custom.coord_tokens.enabled",), message)


def _generation(config: RunConfig) -> Iterator[Problem]:
    matching = config.matching
    if config.metrics.vllm and matching.rollout_backend != "vllm":
        message = f"needs rollout_backend vllm, got {matching.rollout_backend}; set it to false"
        yield Problem(("metrics.vllm", f"{MATCHING}.rollout_backend"), message)
    if matching.rollout_backend != "vllm":
        return
    path, length = f"{MATCHING}.vllm.max_model_len", matching.vllm.max_model_len
    if length == 0:
        message = "is required with rollout_backend vllm; set it to the longest prompt plus max_new_tokens, in tokens"
        yield Problem((path, f"{MATCHING}.rollout_backend"), message)
    elif length <= matching.max_new_tokens:
        message = (
            f"must exceed max_new_tokens {matching.max_new_tokens} by the longest prompt, got {length}; "
            "raise it, or lower max_new_tokens"
        )
        yield Problem((path, f"{MATCHING}.max_new_tokens"), message)


def _adapter(config: RunConfig) -> Iterator[Problem]:
    tuner, path = config.tuner, f"{MATCHING}.vllm.enable_lora"
    if not config.matching.vllm.enable_lora:
        return
    if tuner.train_type != "lora":
        yield Problem((path, "tuner.train_type"), "needs tuner.train_type lora, got full; set it to false")
    if config.matching.rollout_backend != "vllm":
        message = f"needs rollout_backend vllm, got {config.matching.rollout_backend}; set it to false (merged weights)"
        yield Problem((path, f"{MATCHING}.rollout_backend"), message)
    if tuner.lora_rank > MOST_SERVED_RANK:
        message = f"is {tuner.lora_rank}, and vLLM serves adapters up to {MOST_SERVED_RANK}; lower it"
        yield Problem(("tuner.lora_rank", path), message)
    if tuner.use_dora or tuner.modules_to_save:
        which = "tuner.use_dora" if tuner.use_dora else "tuner.modules_to_save"
        message = f"cannot serve an adapter with {which}, which vLLM does not read; set it to false (merged weights)"
        yield Problem((path, which), message)


def _precision(config: RunConfig) -> Iterator[Problem]:
    asked, dtype = config.training.bf16, config.model.torch_dtype
    if asked is not None and asked != (dtype == "bfloat16"):
        message = (
            f"is {str(asked).lower()} but model.torch_dtype is {dtype}; remove training.bf16, it follows the dtype"
        )
        yield Problem(("training.bf16", "model.torch_dtype"), message)
    if config.model.attn_impl == "flash_attention_2":
        if config.cluster.gpus_per_learner == 0:
            message = "flash_attention_2 needs a GPU but cluster.gpus_per_learner is 0; write sdpa"
            yield Problem(("model.attn_impl", "cluster.gpus_per_learner"), message)
        elif dtype == "float32":
            message = "flash_attention_2 computes in 16 bits but model.torch_dtype is float32; write sdpa or bfloat16"
            yield Problem(("model.attn_impl", "model.torch_dtype"), message)


def _schedule(config: RunConfig) -> Iterator[Problem]:
    training, limit = config.training, config.custom.train_sample_limit
    if limit is not None and training.max_steps < 0 and config.num_optimizer_steps(limit) == 0:
        message = (
            f"{limit} records in {training.num_train_epochs:g} epochs fill no window of "
            f"training.effective_batch_size {training.effective_batch_size}, so there would be no step; "
            "raise the limit, lower the batch size, or set training.dataloader_drop_last: false"
        )
        paths = ("custom.train_sample_limit", "training.effective_batch_size", "training.num_train_epochs")
        yield Problem(paths, message)
    if training.eval_strategy == "steps" and training.eval_steps and config.custom.val_jsonl is None:
        message = f"is {training.eval_steps} but custom.val_jsonl is missing; name that file, or remove eval_steps"
        yield Problem(("training.eval_steps", "custom.val_jsonl"), message)
    if training.eval_strategy == "epoch" and config.custom.val_jsonl is None:
        message = "is epoch but custom.val_jsonl is missing; name that file, or write no"
        yield Problem(("training.eval_strategy", "custom.val_jsonl"), message)


def _carry(config: RunConfig) -> Iterator[Problem]:
    if not config.training.packing_carry:
        return
    if not config.training.packing:
        message = "needs training.packing true: padded rows leave no room to fill; set it to false"
        yield Problem(("training.packing_carry", "training.packing"), message)
    if config.rollout.max_staleness < 1:
        message = (
            "needs rollout.max_staleness of 1 or more, got 0: what is held back is trained one version later; "
            "raise it, or set packing_carry to false"
        )
        yield Problem(("training.packing_carry", "rollout.max_staleness"), message)


def _capacity(config: RunConfig) -> Iterator[Problem]:
    batch, staleness = config.training.effective_batch_size, config.rollout.max_staleness
    owed, bound = batch * (staleness + 1), config.buffer.max_segments
    if bound < owed:
        message = (
            f"must hold effective_batch_size {batch} x (max_staleness {staleness} + 1) = {owed} segments, got {bound}; "
            "raise it, or the learner would wait for a window that cannot be admitted"
        )
        yield Problem(("buffer.max_segments", "training.effective_batch_size", "rollout.max_staleness"), message)
    held = batch * (1 + config.training.packing_carry)  # a window, and what is carried into it
    owed_bytes = held * segment_bytes(config.global_max_length)
    if config.buffer.max_bytes < owed_bytes:
        message = (
            f"must hold a window of {held} segments of up to global_max_length "
            f"{config.global_max_length} tokens, {owed_bytes} bytes, got {config.buffer.max_bytes}; raise it"
        )
        yield Problem(("buffer.max_bytes", "training.effective_batch_size", "global_max_length"), message)


def _devices(config: RunConfig) -> Iterator[Problem]:
    cluster, parallel = config.cluster, config.matching.vllm.tensor_parallel_size
    path = f"{MATCHING}.vllm.tensor_parallel_size"
    for name in ("gpus_per_learner", "gpus_per_actor"):
        share = getattr(cluster, name)
        if share > 1 and share != int(share):
            message = f"must be a fraction below 1 or a whole number, got {share}; round it"
            yield Problem((f"cluster.{name}",), message)
    if cluster.gpus_per_learner > 1:
        message = (
            f"must be at most 1, got {cluster.gpus_per_learner}: a rank drives one GPU; raise cluster.num_learners"
        )
        yield Problem(("cluster.gpus_per_learner",), message)
    if config.matching.rollout_backend == "hf" and cluster.gpus_per_actor > 1:
        message = f"must be at most 1 with rollout_backend hf, got {cluster.gpus_per_actor:g}; raise rollout.num_actors"
        yield Problem(("cluster.gpus_per_actor", f"{MATCHING}.rollout_backend"), message)
    elif parallel > 1 and cluster.gpus_per_actor not in (0, parallel):
        message = (
            f"is {parallel} but cluster.gpus_per_actor is {cluster.gpus_per_actor:g}; give each actor that many GPUs"
        )
        yield Problem((path, "cluster.gpus_per_actor"), message)
    if config.sync.backend == "nccl" and 0 in (cluster.gpus_per_actor, cluster.gpus_per_learner):
        message = (
            "nccl needs GPUs on both sides; set cluster.gpus_per_learner and gpus_per_actor, or write object_store"
        )
        yield Problem(("sync.backend", "cluster.gpus_per_actor", "cluster.gpus_per_learner"), message)
    if config.sync.backend == "nccl" and config.sync.timeout_s >= cluster.step_timeout_s:
        message = (
            f"must be below cluster.step_timeout_s {cluster.step_timeout_s:g}, got {config.sync.timeout_s:g}: "
            "a broadcast that an engine misses holds the learner that long; lower it"
        )
        yield Problem(("sync.timeout_s", "cluster.step_timeout_s"), message)
    for path, asked in (
        (f"{MATCHING}.vllm.enable_lora", config.matching.vllm.enable_lora),
        ("cluster.colocate", cluster.colocate),
        (f"{MATCHING}.rollout_backend", config.matching.rollout_backend != "vllm"),
    ):
        if config.sync.backend == "nccl" and asked:
            message = "nccl broadcasts merged weights to vLLM engines on GPUs of their own; write object_store"
            yield Problem(("sync.backend", path), message)


def _queue(config: RunConfig) -> Iterator[Problem]:
    if config.kubernetes.queue and config.cluster.autoscaling:
        message = "Kueue admits a fixed number of pods, and cluster.autoscaling is true; set that to false"
        yield Problem(("kubernetes.queue", "cluster.autoscaling"), message)


def _offload(config: RunConfig) -> Iterator[Problem]:
    offload, deepspeed = config.matching.offload, config.deepspeed
    if not offload.active:
        return
    try:
        stage = deepspeed.zero_stage()
    except ConfigError:  # the file or its stage is wrong: `rollmatch check` names it
        return
    if stage == 0:
        why = "DeepSpeed can offload states with ZeRO only, got stage 0"
    elif stage == 1 and config.model.torch_dtype == "bfloat16":
        why = "DeepSpeed's optimizer for bfloat16 with ZeRO stage 1 cannot move its states"
    elif stage == 3 and offload.offload_optimizer:
        why = "DeepSpeed moves the optimizer states of ZeRO stage 3 for its own FusedAdam only, which is not used here"
    else:
        return
    message = f"{why}; set deepspeed.config to zero2, or offload.enabled to false"
    yield Problem((f"{MATCHING}.offload", "deepspeed.config", "deepspeed.enabled", "model.torch_dtype"), message)


def _colocation(config: RunConfig) -> Iterator[Problem]:
    cluster, offload = config.cluster, config.matching.offload
    if offload.active and cluster.gpus_per_learner == 0:
        message = "moves states between a GPU and host memory, but cluster.gpus_per_learner is 0; set enabled to false"
        yield Problem((f"{MATCHING}.offload.enabled", "cluster.gpus_per_learner"), message)
    if not cluster.colocate:
        return
    shares = cluster.gpus_per_actor, cluster.gpus_per_learner
    if 0 in shares or sum(shares) > 1:
        message = (
            f"engine and learner share one GPU by turns, got cluster.gpus_per_actor {shares[0]:g} and gpus_per_learner "
            f"{shares[1]:g}; write 0.5 for both, or set it to false (on CPU no engine can sleep)"
        )
        yield Problem(("cluster.colocate", "cluster.gpus_per_actor", "cluster.gpus_per_learner"), message)
    if (config.rollout.num_actors, cluster.num_learners) != (1, 1):
        message = (
            f"is for one actor and one learner, got {config.rollout.num_actors} and {cluster.num_learners}; write 1"
        )
        yield Problem(("cluster.colocate", "rollout.num_actors", "cluster.num_learners"), message)
    if config.rollout.max_staleness > 0:
        message = f"needs rollout.max_staleness 0, got {config.rollout.max_staleness}: they take turns; write 0"
        yield Problem(("cluster.colocate", "rollout.max_staleness"), message)
    if offload.parts != ("model", "optimizer"):
        message = "needs offload.enabled, offload_model and offload_optimizer true, or the learner stays where it is"
        yield Problem(("cluster.colocate", f"{MATCHING}.offload"), message)
    if config.matching.rollout_backend != "vllm":
        message = "needs rollout_backend vllm, which can sleep; write vllm"
        yield Problem(("cluster.colocate", f"{MATCHING}.rollout_backend"), message)
