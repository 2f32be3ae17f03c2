"""What of the vLLM engine needs no vLLM: its environment."""

from __future__ import annotations

import pytest

from actors.settings import EngineSettings
from actors.vllm_environment import engine_environment


@pytest.mark.parametrize("on_cpu", [True, False])
def test_the_engine_core_runs_where_buckets_are_mapped(on_cpu: bool) -> None:
    settings = EngineSettings(model="m", dtype="bfloat16", max_model_len=512, num_threads=1, on_cpu=on_cpu)
    environment = engine_environment(settings)
    assert environment["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert ("CUDA_VISIBLE_DEVICES" in environment) == on_cpu
