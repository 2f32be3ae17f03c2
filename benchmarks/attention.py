"""Attention of a packed row on a GPU: seconds of forward and backward, for lengths seen before and for new ones.

    python -m benchmarks.attention [--write]

One layer of Qwen3-VL-8B (32 heads of 128, 8 of keys and values), bfloat16, rows of up to 16,000 tokens with LVIS-like
segments (`benchmarks.packing.lengths`). Ways:

    per segment          the learner's: one causal call of torch's sdpa per segment, without cuDNN
    per segment, cuDNN   the same as torch chooses by itself on Hopper
    varlen               torch's flash attention over all segments in one kernel
    masked               one call of sdpa with a mask [T, T], as transformers does for packed rows; torch chooses

*New* is the median of calls with lengths that the process has not seen: training meets such in every window. *Known* is
the median of calls with the last of them again. Without a GPU it says so and ends.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from benchmarks.packing import CAPACITY, lengths
from benchmarks.reporting import finish, print_table
from protocol.packing import plan_packs

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
ROWS = 6
"""Rows of new lengths per way; the first warms up."""
KNOWN = 5


def rows() -> list[list[int]]:
    """Segment lengths of `ROWS` rows, all different."""
    rng = np.random.default_rng(7)
    found: list[list[int]] = []
    while len(found) < ROWS:
        sizes = lengths("LVIS-like", 32, rng)
        plan = plan_packs(sizes, capacity=CAPACITY, num_ranks=1)
        found.append([sizes[at] for at in plan.micro_batches[0][0]])
    return found


def per_segment(query: Tensor, key: Tensor, value: Tensor, sizes: Sequence[int], *, cudnn: bool) -> Tensor:
    torch.backends.cuda.enable_cudnn_sdp(cudnn)
    parts = zip(*(torch.split(tensor, list(sizes), dim=2) for tensor in (query, key, value)), strict=True)
    attend = functional.scaled_dot_product_attention
    return torch.cat([attend(*part, is_causal=True, enable_gqa=True) for part in parts], dim=2)


def varlen(query: Tensor, key: Tensor, value: Tensor, sizes: Sequence[int]) -> Tensor:
    ends = torch.tensor([0, *np.cumsum(sizes)], dtype=torch.int32, device=query.device)
    repeated = (each.repeat_interleave(HEADS // KV_HEADS, dim=1) for each in (key, value))
    rowwise = (each[0].transpose(0, 1) for each in (query, *repeated))
    longest = max(sizes)
    found: Tensor = varlen_attn(*rowwise, ends, ends, longest, longest, window_size=(-1, 0))
    return found.transpose(0, 1)[None]


def masked(query: Tensor, key: Tensor, value: Tensor, sizes: Sequence[int]) -> Tensor:
    owner = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(query.device)
    mask = (owner[:, None] == owner[None]).tril()
    torch.backends.cuda.enable_cudnn_sdp(True)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


WAYS: dict[str, Callable[..., Tensor]] = {
    "per segment": partial(per_segment, cudnn=False),
    "per segment, cuDNN": partial(per_segment, cudnn=True),
    "varlen": varlen,
    "masked": masked,
}


def inputs(num_tokens: int) -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(1, heads, num_tokens, HEAD_DIM, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        for heads in (HEADS, KV_HEADS, KV_HEADS)
    ]


def timed(way: Callable[..., Tensor], sizes: Sequence[int]) -> tuple[float, Tensor]:
    """Seconds of forward and backward, and the output."""
    tensors = inputs(sum(sizes))
    torch.cuda.synchronize()
    started = time.perf_counter()
    output = way(*tensors, sizes)
    output.sum().backward()
    torch.cuda.synchronize()
    return time.perf_counter() - started, output.detach()


def main() -> None:
    if not torch.cuda.is_available():
        print("skipped: needs a GPU")
        finish("attention", {"skipped": "no GPU"}, write=False)
        return
    packs = rows()
    reference = timed(WAYS["per segment"], packs[-1])[1]
    found = {}
    for name, way in WAYS.items():
        new = [timed(way, sizes)[0] for sizes in packs]
        known = [timed(way, packs[-1]) for _ in range(KNOWN)]
        difference = (known[-1][1] - reference).abs().max() / reference.abs().max()
        found[name] = {
            "new_s": statistics.median(new[1:]),
            "known_s": statistics.median(seconds for seconds, _ in known),
            "max_relative_difference": float(difference),
        }
    table = [[name, *each.values()] for name, each in found.items()]
    print_table("Forward and backward of one layer's attention", ["way", "new (s)", "known (s)", "difference"], table)
    finish("attention", {"rows": packs, "ways": found})


if __name__ == "__main__":
    main()
