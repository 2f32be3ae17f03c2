"""The losses of SPEC 12 over a full `[T, V]`: what the chunked head is tested against."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from learner.losses import CoordTerms, LossSums, coord_terms, make_sums, weighted_coord
from learner.settings import LossSettings
from protocol.segments import IGNORE_INDEX


def terms_of_full_logits(coord_logits: Tensor, bins: Tensor, full: Tensor | None, loss: LossSettings) -> CoordTerms:
    """[C, K] logits of the coordinate ids, [C] bins, [C, V] logits of the vocabulary or None: without the gate."""
    return coord_terms(
        coord_logits,
        bins,
        sigma=loss.target_sigma,
        truncate=loss.target_truncate,
        temperature=loss.temperature,
        full_mass_C=None if full is None else torch.logsumexp(full.float() / loss.temperature, dim=-1),
    )


def row_loss(
    logits: Tensor,
    labels: Tensor,
    coord_positions: Tensor,
    coord_bins: Tensor,
    coord_in_prefix: Tensor,
    coord_ids: Tensor,
    loss: LossSettings,
) -> tuple[Tensor, LossSums]:
    """The differentiable loss of one micro-batch (CE mean + coord mean), and the sums it was made of.

    Args:
        logits: [T, V]; the prediction for position p is read at p − 1.
        labels: [T].
        coord_positions, coord_bins, coord_in_prefix: [C].
        coord_ids: [K].
    """
    predicted = (labels != IGNORE_INDEX).nonzero().squeeze(-1)
    ce = functional.cross_entropy(logits[predicted - 1].float(), labels[predicted], reduction="none")
    full = logits[coord_positions - 1].float()
    terms = terms_of_full_logits(full[:, coord_ids], coord_bins, full if loss.gate_weight else None, loss)
    coord = weighted_coord(terms, loss)
    total = ce.sum() / max(1, ce.numel()) + coord.sum() / max(1, coord.numel())
    return total, make_sums(ce.sum(), ce.numel(), coord, coord_in_prefix)
