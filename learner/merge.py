"""Merged weights: what the engines and plain transformers load, never merged in place (SPEC A17).

An adapter layer is merged on a throw-away fp32 clone of that one layer, with peft's own `merge`, from the pristine base
weight and the fp32 masters of the adapter: DoRA and whatever peft supports come out as peft defines them, and the
trained model is not touched. The result is rounded once, to the serving dtype. Memory: one layer at a time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Protocol

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from learner.model import Policy


class ParameterSource(Protocol):
    """Who knows the whole fp32 value of a parameter that may be partitioned; `TrainEngine` in production."""

    def gathered(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]: ...

    def full_precision(self, parameter: nn.Parameter) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Unit:
    """A module whose tensors are computed together; `template` is set where adapters must be merged."""

    prefix: str
    module: nn.Module
    parameters: Mapping[str, nn.Parameter]
    """By name within the module, adapter parameters included."""
    template: nn.Module | None = None
    """The layer on the meta device, taken before an engine put hooks on it."""

    @property
    def can_change(self) -> bool:
        return any(parameter.requires_grad for parameter in self.parameters.values())

    def names(self) -> list[str]:
        """The tensors of the checkpoint that this unit stands for."""
        own = self.parameters if self.template is None else _base_parameters(self.module)
        return [f"{self.prefix}.{name}" for name in own]


@dataclass(slots=True)
class Rounding:
    """How much of the adapters' update survives the serving dtype."""

    updated: int = 0
    """Elements that the merge changed in fp32."""
    lost: int = 0
    """Those of them that are unchanged after rounding."""


@dataclass(slots=True)
class MergedWeights:
    """All tensors of the checkpoint under their names on disk. Build it before the engine wraps the policy."""

    policy: Policy
    dtype: torch.dtype
    """Serving dtype."""
    units: list[Unit] = field(init=False)
    _moving: frozenset[str] = field(init=False)
    """Fused layers of an engine of which at least one unit can change."""

    def __post_init__(self) -> None:
        self.units = list(_units("", self.policy.core, set()))
        self._moving = frozenset(fused_layer(unit.prefix) for unit in self.units if unit.can_change)

    def names(self) -> list[str]:
        return [name for unit in self.units for name in unit.names()]

    def tensors(
        self, source: ParameterSource, rounding: Rounding, *, only_changing: bool, keep: bool = True
    ) -> Iterator[tuple[str, Tensor, bool]]:
        """(name, CPU tensor in the serving dtype, can it change) of every unit, or of those that can change.

        With those that can change come their siblings of the same fused layer: an engine loads such a layer whole.
        Collective: all ranks must exhaust it. A rank with `keep` false takes part and is given nothing.
        """
        for unit in self.units:
            if only_changing and fused_layer(unit.prefix) not in self._moving:
                continue
            with source.gathered(list(unit.parameters.values())):
                values = {name: source.full_precision(p) for name, p in unit.parameters.items()}
                ready = self._finish(unit, values, rounding) if keep else {}
            for name, tensor in ready.items():
                yield f"{unit.prefix}.{name}", tensor, unit.can_change

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def _finish(self, unit: Unit, values: dict[str, Tensor], rounding: Rounding) -> dict[str, Tensor]:
        if unit.template is None:
            return {name: to_host(value.to(self.dtype)) for name, value in values.items()}
        rounded = {}
        for name, value in merge_layer(unit.template, values).items():
            base = values[f"base_layer.{name}"]
            served = value.to(self.dtype)
            updated = value != base
            rounding.updated += int(updated.sum())
            rounding.lost += int((updated & (served == base.to(self.dtype))).sum())
            rounded[name] = to_host(served)
        return rounded


def to_host(tensor: Tensor) -> Tensor:
    """The tensor in host memory, contiguous; one that is there already is not copied.

    From a GPU it comes into page-locked memory, which torch keeps for the tensors after it.
    """
    if not tensor.is_cuda:
        return tensor.contiguous()
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor)


def merge_layer(template: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """fp32 tensors of the base layer with its adapter merged in, by peft's own rule, on a clone of `template`."""
    clone = _filled(template, values)
    clone.merge(safe_merge=True)  # `values` may be the model's own tensors: a plain merge would add to them in place
    return {name: parameter.detach() for name, parameter in clone.get_base_layer().named_parameters()}


def _filled(template: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A clone of `template` that holds `values` themselves."""
    clone = deepcopy(template)
    clone.load_state_dict(dict(values), assign=True)
    return clone


@torch.no_grad()  # type: ignore[untyped-decorator]
def exact_magnitudes(units: Sequence[Unit], source: ParameterSource) -> Iterator[tuple[nn.Parameter, Tensor]]:
    """DoRA's magnitudes in 16 bits, each with the fp32 norms [rows] that an untrained one stands for. Collective.

    peft rounds the norms to the parameters' dtype, by up to 0.4 % in bfloat16. The trained forward divides by norms
    that are rounded alike; the merge divides by fp32 norms, and would scale each row by what was rounded.
    """
    for unit in units:
        for adapter, vector in getattr(unit.module, "lora_magnitude_vector", {}).items():
            if vector.weight.dtype == torch.float32:
                continue
            assert unit.template is not None, "a layer with an adapter has a template"
            with source.gathered(list(unit.parameters.values())):
                values = {name: source.full_precision(p) for name, p in unit.parameters.items()}
                clone = _filled(unit.template, values)
                base, delta = clone.get_base_layer().weight, clone.get_delta_weight(adapter)
                norms = clone.lora_magnitude_vector[adapter].get_weight_norm(base, delta, scaling=1)
            yield vector.weight, norms


def fused_layer(module: str) -> str:
    """The engine's layer that a module of the checkpoint becomes a part of.

    `...self_attn.q_proj` → `...self_attn.qkv_proj`; what is not fused is its own layer.
    """
    return re.sub(r"\.(gate|up)_proj$", ".gate_up_proj", re.sub(r"\.[qkv]_proj$", ".qkv_proj", module))


def _units(prefix: str, module: nn.Module, seen: set[int]) -> Iterator[Unit]:
    """Depth first, in the order of the model; a tied parameter belongs to its first owner, as on disk."""
    if isinstance(module, ModulesToSaveWrapper):
        yield from _units(prefix, module.modules_to_save[module.active_adapters[0]], seen)
        return
    if isinstance(module, BaseTunerLayer):
        parameters = dict(module.named_parameters())
        seen.update(id(parameter) for parameter in parameters.values())
        yield Unit(prefix, module, parameters, deepcopy(module).to("meta"))
        return
    own = {name: p for name, p in module.named_parameters(recurse=False) if id(p) not in seen}
    seen.update(id(parameter) for parameter in own.values())
    if own:
        yield Unit(prefix, module, own)
    for name, child in module.named_children():
        yield from _units(f"{prefix}.{name}" if prefix else name, child, seen)


def _base_parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    return dict(layer.get_base_layer().named_parameters())
