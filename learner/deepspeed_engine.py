"""The one door to DeepSpeed: start, forward, backward, step, full parameters, state on disk.

What DeepSpeed does by itself and what is done here:

- It averages gradients over ranks; `losses.scales` multiplies by the number of ranks to undo that.
- Its accumulation count is fixed in its configuration, while the number of packs differs per optimizer step. So the
  loss is never divided by it, and `backward(..., last)` says which micro-batch closes the step.
- With ZeRO 1 to 3 it drops a step whose gradient norm is not finite. At stage 0 it does not, and does not report the
  norm either: both happen here.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed import comm
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum
from deepspeed.utils import (
    logger,
    safe_get_full_fp32_param,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_local_fp32_param,
)
from torch import Tensor, nn

from learner.collate import Batch
from learner.cpu_adam import cpu_adam
from learner.deepspeed_json import deepspeed_config, offloads_optimizer
from learner.frozen import FrozenWeights
from learner.losses import LossScales
from learner.model import HeadOutput, Policy, parameter_groups, trainable
from learner.settings import LearnerSettings
from learner.universal import convert

OFFLOADED = {
    "model": (OffloadStateTypeEnum.lp_params,),
    "optimizer": (
        OffloadStateTypeEnum.optim_states,
        OffloadStateTypeEnum.hp_params,
        OffloadStateTypeEnum.lp_grads,
        OffloadStateTypeEnum.contiguous_grad_buffer,
    ),
}
"""DeepSpeed's states behind the two words of `rollout_matching.offload`."""
OPTIONS = ("weight_decay", "betas", "eps")
"""Of a parameter group, what the settings say; its learning rate comes with each step."""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What became of one optimizer step."""

    grad_norm: float
    """Global L2 norm before clipping."""
    applied: bool
    """False: the norm was not finite, no parameter and no moment changed."""


def join(settings: LearnerSettings) -> None:
    """Joins the process group that the environment describes (RANK, WORLD_SIZE, MASTER_ADDR, ...)."""
    on_gpu = torch.cuda.is_available()
    logger.setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch has deprecated: a warning per rank and name, of use to nobody.
    warnings.filterwarnings("ignore", r".*torch\.distributed\.\w+` is deprecated", FutureWarning)
    # The shared-memory op serves inference only and would be compiled here, 40 s on a machine without a cache.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    if on_gpu:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        # cuDNN's attention, torch's first choice on Hopper, builds a plan for every new length of a segment.
        torch.backends.cuda.enable_cudnn_sdp(False)
    else:
        torch.set_num_threads(settings.num_threads)
    deepspeed.init_distributed(
        dist_backend="nccl" if on_gpu else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timedelta(seconds=settings.collective_timeout_s),
    )


class TrainEngine:
    """A policy under DeepSpeed. Every method is collective: all ranks call it in the same order."""

    def __init__(self, policy: Policy, settings: LearnerSettings) -> None:
        config = deepspeed_config(settings)
        self.stage = settings.zero_stage
        self._offloads = offloads_optimizer(config)
        groups = parameter_groups(policy, settings)
        self.peak_rates = {str(group["name"]): float(group["lr"]) for group in groups}
        """Configured learning rate of each parameter group by its name, in the order `step` wants them."""
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=policy, optimizer=_optimizer(groups, settings, config), config=config, dist_init_required=False
        )
        if self.stage == 3:
            deepspeed.zero.register_external_parameter(policy.head, policy.head.weight)
        self.device = torch.device(self._engine.device)
        self.dtype: torch.dtype = getattr(torch, settings.compute_dtype)
        # ZeRO-3 has frozen parameters in its partitions, and moves them with the others.
        self._frozen = FrozenWeights(policy.parameters() if self.stage < 3 else (), self.device)
        self.world_size = int(comm.get_world_size())
        self.rank = int(comm.get_rank())

    def forward(self, batch: Batch, scales: LossScales) -> HeadOutput:
        output: HeadOutput = self._engine(batch.to(self.device, self.dtype), scales)
        return output

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Adds this micro-batch's gradient; `last` closes the optimizer step's accumulation."""
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, rates: Sequence[float]) -> StepOutcome:
        """Clips and applies the accumulated gradient with one learning rate per parameter group."""
        for group, rate in zip(self._optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        if self.stage == 0:
            return self._plain_step()
        self._engine.step()
        applied, norm = bool(self._engine.was_step_applied()), self._engine.get_global_grad_norm()
        if not applied and self._offloads and self.stage < 3:
            # The buffers to which DeepSpeed adds gradients; 0.19.8 drops them after a skipped step everywhere but here.
            self._optimizer.averaged_gradients = dict.fromkeys(self._optimizer.averaged_gradients)
        return StepOutcome(float("nan") if norm is None else float(norm), applied)

    def _plain_step(self) -> StepOutcome:
        gradients = [p.grad for _, p in trainable(self._engine.module) if p.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            self._engine.zero_grad()
            return StepOutcome(norm, False)
        self._engine.step()
        return StepOutcome(norm, True)

    def total(self, values: Sequence[float]) -> list[float]:
        """Sums over ranks, exact for integers below 2^53."""
        tensor = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        comm.all_reduce(tensor)
        return [float(value) for value in tensor.tolist()]

    def barrier(self) -> None:
        comm.barrier()

    @contextmanager
    def gathered(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Whole parameters within the block under ZeRO-3, nothing to do below."""
        with deepspeed.zero.GatheredParameters(list(parameters), enabled=self.stage == 3):
            yield

    def full_precision(self, parameter: nn.Parameter) -> Tensor:
        """[shape of the parameter] fp32 master where DeepSpeed keeps one, else the parameter itself.

        Within `gathered`, and on all ranks, since a partitioned master is summed from its owners.
        """
        if parameter.requires_grad and parameter.dtype != torch.float32:
            master = safe_get_full_fp32_param(parameter)
            if master is not None:
                return master.detach()
        return parameter.detach().float()

    def set_full_precision(self, parameter: nn.Parameter, value: Tensor) -> None:
        """Makes `value` [shape of the parameter] the master of a 16-bit parameter, which stays as it is."""
        if self.stage < 3:
            safe_set_full_fp32_param(parameter, value)
            return
        own = safe_get_local_fp32_param(parameter)  # equally large on all ranks: the last one's may be padded
        padded = nn.functional.pad(value.flatten(), (0, own.numel() * self.world_size - value.numel()))
        safe_set_local_fp32_param(parameter, padded.narrow(0, own.numel() * self.rank, own.numel()))

    def offload(self, parts: Sequence[str]) -> None:
        """Moves `model` (frozen weights too) and `optimizer` states to host memory; with ZeRO 2, others in part."""
        states = [state for part in parts for state in OFFLOADED[part]]
        self._engine.offload_states(include=states, pin_memory=self.device.type == "cuda")
        if "model" in parts:
            self._frozen.leave()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def reload(self) -> None:
        """Inverse of `offload`."""
        self._engine.reload_states()
        self._frozen.enter()

    def save(self, folder: Path) -> None:
        """Optimizer state, masters and what is trained; frozen parameters are in the start checkpoint."""
        self._engine.save_checkpoint(str(folder), tag="state", exclude_frozen_parameters=True)

    def load(self, folder: Path, saved_by: int) -> None:
        """What `save` wrote; `saved_by` ranks wrote it, and below stage 3 another number may read it.

        DeepSpeed brings the options of the run that saved back too: those of this run's settings stay.
        """
        optimizer = self._engine.basic_optimizer
        options = [{name: group[name] for name in OPTIONS} for group in optimizer.param_groups]
        clip = getattr(self._optimizer, "clip_grad", None)
        if self.stage == 0 or saved_by == self.world_size:
            self._engine.load_checkpoint(str(folder), tag="state", load_module_strict=False)
        else:
            self._load_universal(folder)
        for group, own in zip(optimizer.param_groups, options, strict=True):
            # One without offloading saved fewer options than one with it reads.
            group.update(optimizer.defaults | group | own)
        if clip is not None:  # stage 0 clips by its configuration
            self._optimizer.clip_grad = clip

    def _load_universal(self, folder: Path) -> None:
        if self.rank == 0:
            shutil.rmtree(folder / "universal", ignore_errors=True)
            convert(folder / "state", folder / "universal")
        self.barrier()
        self._engine._config.load_universal_checkpoint = True
        self._engine.load_checkpoint(str(folder), tag="universal", load_module_strict=False)
        self._engine._config.load_universal_checkpoint = False
        self.barrier()
        if self.rank == 0:
            shutil.rmtree(folder / "universal")


def _optimizer(
    groups: list[dict[str, Any]], settings: LearnerSettings, config: Mapping[str, Any]
) -> torch.optim.Optimizer:
    """AdamW; DeepSpeed's CPU version where the optimizer is offloaded."""
    chosen = settings.optimizer
    options: dict[str, Any] = {"betas": (chosen.beta1, chosen.beta2), "eps": chosen.epsilon}
    if offloads_optimizer(config):
        return cpu_adam(groups, options)
    return torch.optim.AdamW(groups, fused=torch.cuda.is_available(), **options)
