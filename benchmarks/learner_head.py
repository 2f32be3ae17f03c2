"""One loss, forward and backward, in a process of its own: `python -m benchmarks.learner_head plain|chunked`.

Prints one JSON object: seconds, bytes above the inputs at the peak, loss. *Plain* is what transformers does: logits of
every position, `[T, V]` in fp32, one cross-entropy over them; *chunked* is `learner.lm_head`. Every position is
supervised, three of four by cross-entropy and the rest by the coordinate loss, and the head is trained: the hardest
case for the chunked head, which otherwise skips positions and the weight's gradient.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from learner.lm_head import SupervisedHead
from learner.losses import LossScales, coord_terms, weighted_coord
from learner.settings import LossSettings

VOCABULARY, TOKENS, HIDDEN = 152_670, 2_048, 1_024
NUM_COORD = TOKENS // 4
FIRST_COORD = VOCABULARY - 1_000
SCALES = LossScales(ce=1 / (TOKENS - NUM_COORD), coord=1 / NUM_COORD)
LOSS = LossSettings(target_truncate=16)
STATUS = Path("/proc/self/status")


def plain(head: nn.Linear, hidden: Tensor, ids: Tensor, bins: Tensor) -> Tensor:
    """The loss over all logits at once; rows are CE targets, then coordinate targets."""
    logits = head(hidden).float()
    labels = torch.cat([ids, torch.full_like(bins, -100)])
    ce = nn.functional.cross_entropy(logits, labels, reduction="sum")
    full = logits[len(ids) :]
    terms = coord_terms(
        full[:, FIRST_COORD:],
        bins,
        sigma=LOSS.target_sigma,
        truncate=LOSS.target_truncate,
        temperature=LOSS.temperature,
        full_mass_C=torch.logsumexp(full / LOSS.temperature, dim=-1),
    )
    return SCALES.ce * ce + SCALES.coord * weighted_coord(terms, LOSS).sum()


def chunked(head: nn.Linear, hidden: Tensor, ids: Tensor, bins: Tensor) -> Tensor:
    """The learner's own."""
    ours = SupervisedHead(head, tuple(range(FIRST_COORD, VOCABULARY)), LOSS).to(hidden.device)
    return ours(hidden, ids, bins, SCALES)[0]


def measure(loss: Callable[..., Tensor], device: torch.device) -> dict[str, float]:
    """Seconds of one forward and backward (on CPU: processor seconds of all threads, so that other processes do not
    count), and the most bytes that were alive in it beside hidden states and weight."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False, device=device, dtype=dtype)
    hidden = torch.randn(TOKENS, HIDDEN, device=device, dtype=dtype, requires_grad=True)
    ids = torch.randint(0, FIRST_COORD, (TOKENS - NUM_COORD,), device=device)
    bins = torch.randint(0, 1_000, (NUM_COORD,), device=device)
    head(hidden[:8]).sum().backward()  # loads the libraries' code
    head.weight.grad = hidden.grad = None
    before = forget_peak(device)
    started = now(device)
    value = loss(head, hidden, ids, bins)
    value.backward()
    seconds = now(device) - started
    return {"seconds": seconds, "peak_bytes": peak_bytes(device) - before, "loss": value.item()}


def now(device: torch.device) -> float:
    """A clock in seconds; on CPU it counts this process's work only."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def forget_peak(device: torch.device) -> int:
    """Forgets the peak so far; bytes in use."""
    if device.type == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def peak_bytes(device: torch.device) -> int:
    """The most bytes in use since `forget_peak`."""
    return _status("VmHWM") if device.type == "cpu" else int(torch.cuda.max_memory_allocated())


def _status(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None, f"Linux has {field} in {STATUS}"
    return int(found[1]) * 1024


def main() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    print(json.dumps(measure({"plain": plain, "chunked": chunked}[sys.argv[1]], device)))


if __name__ == "__main__":
    main()
