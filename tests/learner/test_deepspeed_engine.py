"""The door to DeepSpeed, where it needs no process group."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learner.deepspeed_engine import _optimizer
from protocol.errors import ConfigError
from tests.learner import tiny


def test_without_a_compiler_an_offloaded_optimizer_is_refused_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    zero = {"stage": 2, "offload_optimizer": {"device": "cpu"}}
    settings = tiny.settings(Path("x"), deepspeed={"zero_optimization": zero})
    groups = [{"params": [torch.nn.Parameter(torch.ones(4))], "lr": 1e-3, "weight_decay": 0.0}]
    with pytest.raises(ConfigError, match=r"^deepspeed\.config: zero_optimization\.offload_optimizer needs .*cpu_adam"):
        _optimizer(groups, settings, {"zero_optimization": zero})
