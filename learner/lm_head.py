"""The language-model head at supervised positions only, in chunks: `[T, V]` never exists.

The denominators of a step are known before its forward (SPEC A9), so the multiplier of each position is known when its
logits are alive: the gradient with respect to the hidden states and the head's weight is taken chunk by chunk in the
forward, and the backward only hands it on. Nothing is computed twice, and at most `chunk_rows` rows of logits exist.

Under ZeRO-3 the weight is needed in the forward only; the engine's door registers it as an external parameter of
`SupervisedHead`, which gathers it around the call.

Shapes: S rows (N of cross-entropy, then C of coordinates), H hidden, V vocabulary, K coordinate bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from learner.losses import LossScales, coord_terms, weighted_coord
from learner.settings import LossSettings

CHUNK_BYTES = 224 * 2**20
"""Logits of a chunk: every chunk reads the whole weight, so small ones cost time; the peak is about two of them."""


@dataclass(frozen=True, slots=True)
class HeadTargets:
    """What the head is asked for, with rows already gathered."""

    ce_ids: Tensor
    """[N] token id each CE row must predict."""
    coord_bins: Tensor
    """[C] target bin of each coordinate row."""
    coord_ids: Tensor
    """[K] token id of each bin."""
    scales: LossScales
    loss: LossSettings
    chunk_rows: int


class _Gradients:
    """Collects d loss/d hidden and d loss/d weight; empty where nobody asked."""

    def __init__(self, hidden: Tensor, weight: Tensor, want_weight: bool) -> None:
        self.hidden = torch.zeros_like(hidden)
        # Sums of many chunks are kept in fp32 even where the weight is bfloat16.
        self.weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device) if want_weight else None

    def add(self, rows: slice, dlogits: Tensor, hidden: Tensor, weight: Tensor, columns: Tensor | None) -> None:
        """`columns` are the weight's rows that `dlogits` belongs to, None for all."""
        dlogits = dlogits.to(weight.dtype)
        self.hidden[rows] = dlogits @ weight
        if self.weight is None:
            return
        if columns is not None:
            self.weight.index_add_(0, columns, (dlogits.T @ hidden).float())
        elif weight.dtype == torch.float32:
            self.weight.addmm_(dlogits.T, hidden)
        else:
            self.weight.add_(dlogits.T @ hidden)


def _softmax_(logits: Tensor) -> Tensor:
    """Turns `logits` [S, V] into probabilities in place, since a second [S, V] would double the peak; returns their
    logsumexp [S]."""
    top = logits.amax(-1, keepdim=True)
    logits.sub_(top).exp_()
    mass = logits.sum(-1, keepdim=True)
    logits.div_(mass)
    return (top + mass.log()).squeeze(1)


def _ce_chunk(logits: Tensor, ids: Tensor, scale: float) -> Tensor:
    """Cross-entropy of each row; `logits` [S, V] is overwritten by its gradient times `scale`."""
    picked = logits.gather(1, ids[:, None]).squeeze(1)
    log_norm = _softmax_(logits)
    logits.scatter_add_(1, ids[:, None], torch.full_like(ids[:, None], -1, dtype=logits.dtype))
    logits.mul_(scale)
    return log_norm - picked


def _coord_chunk(logits: Tensor, bins: Tensor, columns: Tensor | None, targets: HeadTargets) -> Tensor:
    """Weighted coordinate loss of each row; `logits` is overwritten by its gradient times the scale.

    Args:
        logits: [S, V] with `columns` [K] the coordinate ids, or [S, K] with `columns` None where no gate is wanted.
    """
    temperature = targets.loss.temperature
    scores = (logits if columns is None else logits[:, columns]).clone().requires_grad_()
    mass = None if columns is None else _softmax_(logits.div_(temperature)).requires_grad_()
    with torch.enable_grad():
        terms = coord_terms(
            scores,
            bins,
            sigma=targets.loss.target_sigma,
            truncate=targets.loss.target_truncate,
            temperature=temperature,
            full_mass_C=mass,
        )
        values = weighted_coord(terms, targets.loss)
        wanted = [scores] if mass is None else [scores, mass]
        by_score, *by_mass = torch.autograd.grad(values.sum() * targets.scales.coord, wanted)
    if columns is None:
        logits.copy_(by_score)
    else:
        logits.mul_(by_mass[0][:, None] / temperature).index_add_(1, columns, by_score)
    return values.detach()


class _FusedHead(torch.autograd.Function):  # type: ignore[misc]
    """(hidden, weight) → (loss, CE of each CE row, coordinate loss of each coordinate row)."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: HeadTargets) -> Any:
        gradients = _Gradients(hidden, weight, want_weight=ctx.needs_input_grad[1])
        ce = _run_ce(hidden, weight, targets, gradients)
        coord = _run_coord(hidden, weight, targets, gradients)
        loss = ce.sum() * targets.scales.ce + coord.sum() * targets.scales.coord
        ctx.weight_dtype = weight.dtype
        ctx.save_for_backward(gradients.hidden, *([gradients.weight] if gradients.weight is not None else []))
        ctx.mark_non_differentiable(ce, coord)
        return loss, ce, coord

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, upstream: Tensor, *_: Any) -> Any:
        hidden, *rest = ctx.saved_tensors
        weight = rest[0].mul_(upstream).to(ctx.weight_dtype) if rest else None
        return hidden.mul_(upstream.to(hidden.dtype)), weight, None


def _run_ce(hidden: Tensor, weight: Tensor, targets: HeadTargets, gradients: _Gradients) -> Tensor:
    num_ce = targets.ce_ids.shape[0]
    values = hidden.new_zeros(num_ce, dtype=torch.float32)
    for start in range(0, num_ce, targets.chunk_rows):
        rows = slice(start, min(start + targets.chunk_rows, num_ce))
        logits = functional.linear(hidden[rows], weight).float()
        values[rows] = _ce_chunk(logits, targets.ce_ids[rows], targets.scales.ce)
        gradients.add(rows, logits, hidden[rows], weight, None)
    return values


def _run_coord(hidden: Tensor, weight: Tensor, targets: HeadTargets, gradients: _Gradients) -> Tensor:
    """Without a gate only the 1,000 coordinate columns of the head are needed."""
    num_ce, num_coord = targets.ce_ids.shape[0], targets.coord_bins.shape[0]
    columns = None if targets.loss.gate_weight else targets.coord_ids
    used = weight if columns is None else weight[columns]
    values = hidden.new_zeros(num_coord, dtype=torch.float32)
    for start in range(0, num_coord, targets.chunk_rows):
        here = slice(start, min(start + targets.chunk_rows, num_coord))
        rows = slice(num_ce + here.start, num_ce + here.stop)
        logits = functional.linear(hidden[rows], used).float()
        inside = targets.coord_ids if columns is None else None
        values[here] = _coord_chunk(logits, targets.coord_bins[here], inside, targets)
        gradients.add(rows, logits, hidden[rows], used, columns)
    return values


class SupervisedHead(nn.Module):  # type: ignore[misc]
    """Calls a head's weight at supervised rows; owns no parameter, so names in checkpoints stay the model's own."""

    def __init__(self, head: nn.Linear, coord_ids: tuple[int, ...], loss: LossSettings, chunk_rows: int = 0) -> None:
        super().__init__()
        self._head = (head,)  # in a tuple: not a submodule
        self.register_buffer("coord_ids", torch.tensor(coord_ids), persistent=False)
        self._loss = loss
        self._chunk_rows = chunk_rows or max(1, CHUNK_BYTES // (4 * head.weight.shape[0]))

    @property
    def weight(self) -> nn.Parameter:
        return self._head[0].weight

    def forward(
        self, hidden: Tensor, ce_ids: Tensor, coord_bins: Tensor, scales: LossScales
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (scaled), CE of each CE row [N] and coordinate loss of each coordinate row [C] (both detached).

        Args:
            hidden: [S, H] hidden states one position before each target: N CE rows, then C coordinate rows.
            ce_ids: [N] token id that each CE row must predict.
            coord_bins: [C] target bin of each coordinate row.
        """
        targets = HeadTargets(ce_ids, coord_bins, self.coord_ids, scales, self._loss, self._chunk_rows)
        result: tuple[Tensor, Tensor, Tensor] = _FusedHead.apply(hidden, self.weight, targets)
        return result
