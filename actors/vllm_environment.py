"""What surrounds a vLLM engine in its process: environment variables, and where its metrics go."""

from __future__ import annotations

from typing import Any

from actors.settings import EngineSettings


def engine_environment(settings: EngineSettings) -> dict[str, str]:
    """Environment of an engine process; must be set before vLLM is imported."""
    common = {"HF_HUB_OFFLINE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    if settings.watches_repeats:
        # The repeat guard is written for vLLM's first model runner; without it vLLM chooses.
        common["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    if not settings.on_cpu:
        return common
    return common | {
        "CUDA_VISIBLE_DEVICES": "",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        # Threads of an idle engine sleep at once: the learner shares these cores.
        "OMP_WAIT_POLICY": "passive",
        "GOMP_SPINCOUNT": "0",
        "KMP_BLOCKTIME": "0",
    }


def stat_loggers() -> list[Any]:
    """vLLM's Prometheus metrics as Ray's (`ray_vllm_*`): an in-process engine has no HTTP server of its own."""
    from ray.util import metrics
    from vllm.v1.metrics import ray_wrappers

    # vLLM imports these together with Ray Serve, which is not installed here and which the metrics do not need.
    ray_wrappers.ray_metrics = metrics
    return [ray_wrappers.RayPrometheusStatLogger]
