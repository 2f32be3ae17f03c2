"""`custom.extra.rollout_matching.vllm`: the vLLM engine of a rollout actor (SPEC 19.1)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from protocol.config.base import NonNegativeFloat, NonNegativeInt, PositiveInt, Problem, Section, require

OWN_KEYS = frozenset({"max_model_len", "dtype", "sleep_level", "infer_batch_size", "swap_space"})
"""Fields that are not vLLM engine arguments (any more), or that the engine settings carry on their own."""


class VllmConfig(Section):
    """One engine. Null leaves the choice to vLLM."""

    max_model_len: NonNegativeInt = 0
    """Most tokens of prompt and rollout together; required with the vllm backend, must exceed `max_new_tokens`."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Dtype of the served weights. Null: `model.torch_dtype`."""
    tensor_parallel_size: PositiveInt = 1
    """GPUs per engine; `cluster.gpus_per_actor` must be the same number."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.45
    """Share of the GPU memory that the engine takes. Actors own their GPUs here, so 0.85 is usually right."""
    enable_lora: bool = False
    """Send the adapter instead of merged weights (SPEC A18); needs `tuner.train_type: lora` without DoRA."""
    load_format: str | None = None
    """Weight loader of the first start, such as `dummy` where a full sync follows. Null: `safetensors`, and
    no pickled weights."""
    enable_prefix_caching: bool = True
    """Reuse the key-value cache of equal prompt heads; reset at every sync."""
    sleep_level: Literal[0] = 0
    """Only 0: actors own their engine, nothing would wake it."""
    enforce_eager: bool | None = None
    """Run without compiling and without CUDA graphs. Null: so on a CPU, where compiling takes longer than a small run
    gains by it, and not on a GPU."""
    disable_custom_all_reduce: bool = True
    """Use NCCL's all-reduce within an engine."""
    max_num_seqs: PositiveInt = 256
    """Most rollouts that one engine decodes at once."""
    max_num_batched_tokens: PositiveInt | None = None
    """Most tokens of one scheduler step."""
    enable_chunked_prefill: bool | None = None
    """Split long prompts over scheduler steps."""
    disable_chunked_mm_input: bool | None = None
    """Keep an image's tokens in one scheduler step."""
    skip_mm_profiling: bool | None = None
    """Do not reserve memory for the largest possible image at start."""
    kv_cache_dtype: str | None = None
    """Dtype of the key-value cache, such as `fp8`."""
    cpu_offload_gb: NonNegativeFloat | None = None
    """GiB of weights kept in host memory, per GPU."""
    swap_space: NonNegativeFloat | None = None
    """Accepted for runbook files; without effect: current vLLM recomputes instead of swapping."""
    limit_mm_per_prompt: dict[str, NonNegativeInt] = Field(default_factory=lambda: {"image": 1, "video": 0})
    """Most images and videos of one prompt."""
    mm_encoder_tp_mode: Literal["weights", "data"] | None = None
    """How the vision encoder is spread over the GPUs of an engine."""
    infer_batch_size: int | None = None
    """Most rollouts that the engine is given at once; lowers `max_num_seqs` where it is smaller. <= 0 or null: all."""

    @model_validator(mode="before")
    @classmethod
    def _never_sleeps(cls, data: Any) -> Any:
        level = data.get("sleep_level", 0) if isinstance(data, dict) else 0
        if isinstance(level, int) and level > 0:
            message = f"must be 0, got {level}; remove the key: actors own their engine and nothing would wake it again"
            require([Problem(("sleep_level",), message)])
        return data

    def engine_options(self) -> dict[str, Any]:
        """What is set here, under vLLM's own names for its engine arguments."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name not in OWN_KEYS}
        if self.infer_batch_size is not None and self.infer_batch_size > 0:
            values["max_num_seqs"] = min(self.max_num_seqs, self.infer_batch_size)
        return {"load_format": "safetensors"} | {name: value for name, value in values.items() if value is not None}
