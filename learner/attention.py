"""Attention of a packed row as what it is: one small causal square per segment, never the whole [T, T].

Transformers' own sdpa path builds a mask [1, 1, T, T] for packed rows and computes every square of it; with 8 equal
segments seven eighths of that are thrown away, and masked sdpa has no fast kernel. Here each segment is a call of its
own, causal and without a mask: linear in the number of segments, in time and in memory. `flash_attention_2` does the
same in one kernel, from row 0 of the position ids.

Right-padded rows need no mask either: a causal row never looks at the padding behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

PER_SEGMENT = "rollmatch_sdpa_per_segment"


def per_segment_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    segment_lengths: Sequence[int] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment of a packed row, or within each row where no lengths are given.

    Args:
        query, key, value: [B, heads, T, head size]; B is 1 where `segment_lengths` is given.
        segment_lengths: tokens of each segment, adding up to T.

    Returns:
        [B, T, heads, head size], and no weights.
    """
    assert attention_mask is None, "transformers builds no mask for an attention it has no mask function for"
    if segment_lengths is None:
        segment_lengths = [query.shape[2]]
    parts = zip(*(torch.split(tensor, list(segment_lengths), dim=2) for tensor in (query, key, value)), strict=True)
    outputs = [sdpa_attention_forward(module, *part, None, **{**options, "is_causal": True})[0] for part in parts]
    return torch.cat(outputs, dim=1), None


def implementation(attn_impl: str) -> str | dict[str, str]:
    """What to load a checkpoint with for `model.attn_impl`: sdpa becomes per-segment sdpa in the language model."""
    if attn_impl != "sdpa":
        return attn_impl
    AttentionInterface.register(PER_SEGMENT, per_segment_attention)
    return {"text_config": PER_SEGMENT, "vision_config": "sdpa"}
