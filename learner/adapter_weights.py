"""The adapter itself, in the place of merged weights: what engines load with `vllm.enable_lora` (SPEC A18)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from learner.merge import ParameterSource, Rounding, to_host
from learner.model import Policy, trainable


class AdapterWeights:
    """All adapter tensors under the names of peft's files, rounded once to the serving dtype.

    `description` is peft's own `adapter_config.json`. Whoever loads the tensors puts them on the start checkpoint.
    """

    def __init__(self, policy: Policy, dtype: torch.dtype) -> None:
        assert policy.adapter is not None, "the configuration's rules want tuner.train_type lora"
        self._policy = policy
        self._dtype = dtype
        self._suffix = f".{policy.adapter.active_adapter}"
        with tempfile.TemporaryDirectory() as folder:
            policy.adapter.peft_config[policy.adapter.active_adapter].save_pretrained(folder)
            self.description: str = (Path(folder) / "adapter_config.json").read_text(encoding="utf-8")

    def tensors(
        self, source: ParameterSource, rounding: Rounding, *, only_changing: bool, keep: bool = True
    ) -> Iterator[tuple[str, Tensor, bool]]:
        """As `MergedWeights.tensors`; every adapter tensor can change, so `only_changing` leaves none out."""
        for name, parameter in trainable(self._policy):
            with source.gathered([parameter]):
                value = source.full_precision(parameter)
                rounded = to_host(value.to(self._dtype)) if keep else None
            if rounded is not None:
                yield self._name(name), rounded, True

    def _name(self, parameter: str) -> str:
        return parameter.replace("core.", "base_model.model.", 1).replace(self._suffix, "", 1)
