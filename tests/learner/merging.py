"""Policies whose weights are merged and exported, as without an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from learner.export import write_merged
from learner.merge import MergedWeights, Rounding
from learner.model import Policy, build_policy, trainable
from learner.settings import LearnerSettings, TunerSettings

LORA = TunerSettings(kind="lora", freeze_aligner=False)
DORA = TunerSettings(kind="lora", freeze_aligner=False, use_dora=True)
WITH_MODULE = TunerSettings(kind="lora", modules_to_save=("norm",), use_rslora=True)

TIED = TunerSettings(kind="lora", modules_to_save=("lm_head",))
TIED_BOTH = TunerSettings(kind="lora", modules_to_save=("lm_head", "embed_tokens"))


class Unpartitioned:
    """Every rank holds everything, as without an engine."""

    @contextlib.contextmanager
    def gathered(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        yield

    def full_precision(self, parameter: nn.Parameter) -> Tensor:
        return parameter.detach().float()


def disturbed(settings: LearnerSettings, scale: float = 0.05) -> Policy:
    """A policy whose trained parameters have moved."""
    policy = build_policy(settings)
    torch.manual_seed(5)
    with torch.no_grad():
        for _, parameter in trainable(policy):
            parameter.add_(scale * torch.randn_like(parameter))
    return policy.eval()


def merged(policy: Policy, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    tensors = MergedWeights(policy, dtype).tensors(Unpartitioned(), Rounding(), only_changing=False)
    return {name: tensor for name, tensor, _ in tensors}


def exported(policy: Policy, start: Path, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    folder.mkdir()
    write_merged(folder, merged(policy, dtype).items(), start)
    return folder
