"""The losses of SPEC 12 as sums and counts; who divides them is `normalization`'s business (SPEC A9).

Legend of shape suffixes: T tokens of a row, C coordinate targets, K coordinate bins, V vocabulary.

Non-finite policy: coordinate logits are made finite before their softmax (NaN to 0, infinities and everything beyond
to ±1e4), as the reference does; the cross-entropy and the gate see the logits as they are, so that a broken forward
shows as a non-finite sum and the step is skipped.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

import torch
from torch import Tensor
from torch.nn import functional

from learner.settings import LossSettings, Normalization
from protocol.vocab import NUM_BINS

LOGIT_LIMIT = 1e4


@dataclass(frozen=True, slots=True)
class LossSums:
    """Sums and their denominators over some set of supervised positions; sums of sums are exact."""

    ce_sum: float = 0.0
    ce_tokens: int = 0
    coord_sum: float = 0.0
    """Weighted soft-CE + W1 + gate over prefix and tail."""
    coord_targets: int = 0
    coord_prefix_sum: float = 0.0
    coord_prefix_count: int = 0
    coord_tail_sum: float = 0.0
    coord_tail_count: int = 0

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class LossScales:
    """What each summed term is multiplied by to become this rank's share of the step's loss."""

    ce: float
    coord: float


@dataclass(frozen=True, slots=True)
class CoordTerms:
    """The three unweighted terms of each coordinate target, all [C]; `gate` is None where it was not asked for."""

    soft_ce: Tensor
    w1: Tensor
    gate: Tensor | None


def coord_target(bins: Tensor | int, sigma: float, truncate: float | None = None, num_bins: int = NUM_BINS) -> Tensor:
    """Soft target q_k ∝ exp(−½((k−t)/σ)²), zero where |k−t| > truncate, normalised (SPEC 12).

    Args:
        bins: target bins t, [C] or one integer.

    Returns:
        fp32 [C, K], or [K] for an integer. With σ 2 and truncate 0 the row of bin 2 is one-hot at 2.
    """
    if sigma <= 0:
        raise ValueError(f"target_sigma must be > 0, got {sigma}; a one-hot target is target_truncate: 0")
    if truncate is not None and truncate < 0:
        raise ValueError(f"target_truncate must be null or >= 0, got {truncate}")
    target = torch.as_tensor(bins)
    distance = torch.arange(num_bins, dtype=torch.float32, device=target.device) - target.float().unsqueeze(-1)
    bell = torch.exp(-0.5 * (distance / sigma) ** 2)
    if truncate is not None:
        bell = bell.masked_fill(distance.abs() > truncate, 0.0)
    return bell / bell.sum(-1, keepdim=True)


def coord_terms(
    coord_logits_CK: Tensor,
    bins_C: Tensor,
    *,
    sigma: float,
    truncate: float | None,
    temperature: float,
    full_mass_C: Tensor | None = None,
) -> CoordTerms:
    """softCE, W1 and gate of SPEC 12 for each coordinate target, in fp32.

    Args:
        coord_logits_CK: logits of the coordinate ids in bin order.
        bins_C: target bins.
        full_mass_C: logsumexp(z / temperature) over the whole vocabulary; None leaves the gate out.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    num_bins = coord_logits_CK.shape[-1]
    raw = coord_logits_CK.float().nan_to_num(nan=0.0)
    scores = raw.clamp(-LOGIT_LIMIT, LOGIT_LIMIT) / temperature
    target = coord_target(bins_C.to(scores.device), sigma, truncate, num_bins)
    log_p = functional.log_softmax(scores, dim=-1)
    soft_ce = -(target * log_p).sum(-1)
    w1 = (_softmax(scores).cumsum(-1) - target.cumsum(-1)).abs().sum(-1) / num_bins
    gate = None
    if full_mass_C is not None:
        gate = (full_mass_C - torch.logsumexp(scores, dim=-1)).clamp(min=0.0)
    return CoordTerms(soft_ce, w1, gate)


def _softmax(scores_CK: Tensor) -> Tensor:
    """As written in a book: the fused kernels are 4e-7 off at a spike, and W1 adds that up over all later bins."""
    mass = (scores_CK - scores_CK.amax(-1, keepdim=True).detach()).exp()
    return mass / mass.sum(-1, keepdim=True)


def weighted_coord(terms: CoordTerms, settings: LossSettings) -> Tensor:
    """w_soft·softCE + w_w1·W1 + w_gate·gate, [C]."""
    total = settings.soft_ce_weight * terms.soft_ce + settings.w1_weight * terms.w1
    return total if terms.gate is None else total + settings.gate_weight * terms.gate


def make_sums(ce_sum: Tensor, ce_tokens: int, coord_C: Tensor, coord_in_prefix_C: Tensor) -> LossSums:
    """Splits per-target values into the counters of `LossSums`."""
    coord_C = coord_C.detach()
    in_prefix = coord_in_prefix_C.to(coord_C.device)
    num_prefix = int(in_prefix.sum())
    return LossSums(
        ce_sum=float(ce_sum.detach()),
        ce_tokens=ce_tokens,
        coord_sum=float(coord_C.sum()),
        coord_targets=coord_C.numel(),
        coord_prefix_sum=float(coord_C[in_prefix].sum()),
        coord_prefix_count=num_prefix,
        coord_tail_sum=float(coord_C[~in_prefix].sum()),
        coord_tail_count=coord_C.numel() - num_prefix,
    )


@dataclass(frozen=True, slots=True)
class StepCounts:
    """Denominators of one optimizer step, summed over all ranks and micro-batches."""

    ce_tokens: int
    coord_targets: int
    num_micro_batches: int
    """Those that hold at least one segment."""


def scales(
    normalization: Normalization, counts: StepCounts, ce_tokens: int, coord_targets: int, world_size: int
) -> LossScales:
    """Multipliers of one micro-batch's sums, such that the gradient averaged over ranks is the step's gradient.

    `global` (SPEC A9): 1/N over the whole step, so that packing and sharding do not matter. `micro_batch`: the
    reference's mean of means. The factor `world_size` undoes the average over ranks that data-parallel training takes.
    """
    if normalization == "global":
        return LossScales(world_size / max(1, counts.ce_tokens), world_size / max(1, counts.coord_targets))
    share = world_size / max(1, counts.num_micro_batches)
    return LossScales(share / max(1, ce_tokens), share / max(1, coord_targets))
