"""The learner against the plain way, side by side: packed rows, the loss's memory, attention of packed rows.

    python -m benchmarks.learner [--write]

1. *Packed and padded*: tokens (padding not counted) per second of whole optimizer steps, `training.packing` on and off,
   same segments, by turns. Lengths are LVIS-like (`benchmarks.packing.lengths`: lognormal, median 1,636 tokens, a tail
   beyond 11k, at 16,000 at most), divided by 8 so that a processor can follow. *Allowed* is what the padding costs:
   tokens of the padded rows / tokens; *reached* is (packed / padded) / allowed.
2. *Loss*: `benchmarks.learner_head`, each run in a process of its own.
3. *Attention*: hidden states of one packed row, per segment (the learner's `sdpa`) and with transformers' own mask
   [T, T], beside forwards of each segment alone.

On CPU seconds are processor seconds of all threads: other processes on the machine do not count. On a GPU they
are wall seconds, and compute is bfloat16 (not run there yet).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.learner_head import HIDDEN, TOKENS, VOCABULARY, now
from benchmarks.packing import CAPACITY, lengths
from benchmarks.reporting import finish, print_table
from learner.collate import Batch, Vision, collate_packed
from learner.model import Policy, build_policy
from learner.prompt_encoder import PromptEncoder
from learner.settings import LearnerSettings
from learner.worker import LearnerWorker
from protocol.packing import padded_plan, plan_packs
from protocol.segments import PackPlan, Segment
from tests.learner import tiny

SHRINK = 8
NUM_SEGMENTS = 16
BATCH = 8
"""Segments of a padded forward: about as many tokens as a pack holds."""
ROUNDS = 3
MODEL = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8}


def join_alone() -> None:
    """The environment of a process group of one."""
    os.environ.update(
        RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0"
    )


def make_segments(folder: Path) -> list[Segment]:
    sizes = [length // SHRINK for length in lengths("LVIS-like", NUM_SEGMENTS, np.random.default_rng(7))]
    shortest = len(tiny.make_segment(folder, 0, prefix=8, tail=8).input_ids) - 16
    room = [max(16, size - shortest - 4) for size in sizes]
    return [
        tiny.make_segment(folder, number, prefix=free // 2, tail=free - free // 2) for number, free in enumerate(room)
    ]


def by_turns(calls: dict[str, Callable[[], object]], device: torch.device) -> dict[str, float]:
    """Median seconds of each call, after one warm-up, ROUNDS times one after the other."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(ROUNDS + 1):
        for name, call in calls.items():
            started = now(device)
            call()
            if turn:
                seconds[name].append(now(device) - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


def packed_and_padded(
    settings: Callable[..., LearnerSettings], segments: Sequence[Segment], device: torch.device
) -> Any:
    sizes = [len(segment.input_ids) for segment in segments]
    plans = {
        "packed": plan_packs(sizes, capacity=CAPACITY // SHRINK, num_ranks=1),
        "padded": padded_plan(sizes, per_device_batch_size=BATCH, num_ranks=1),
    }
    workers = {name: LearnerWorker(settings(packing=name == "packed", max_length=CAPACITY // SHRINK)) for name in plans}

    def step(name: str) -> Callable[[], object]:
        packs = [[segments[at] for at in row[0]] for row in plans[name].micro_batches]
        return lambda: workers[name].train_step(packs)

    seconds = by_turns({name: step(name) for name in plans}, device)
    allowed = padded_tokens(plans["padded"], sizes) / sum(sizes)
    ratio = seconds["padded"] / seconds["packed"]
    return {
        "tokens": sum(sizes),
        "packed_tokens_per_s": sum(sizes) / seconds["packed"],
        "padded_tokens_per_s": sum(sizes) / seconds["padded"],
        "ratio": ratio,
        "allowed_ratio": allowed,
        "reached": ratio / allowed,
        "bar": 0.95,
    }


def padded_tokens(plan: PackPlan, sizes: Sequence[int]) -> int:
    rows = [pack for row in plan.micro_batches for pack in row if pack]
    return sum(len(pack) * max(sizes[at] for at in pack) for pack in rows)


def loss_head() -> Any:
    """Two runs of each by turns; the less disturbed one counts."""
    found: dict[str, list[dict[str, float]]] = {"plain": [], "chunked": []}
    for _ in range(2):
        for name, runs in found.items():
            command = [sys.executable, "-m", "benchmarks.learner_head", name]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=900)
            if done.returncode:
                raise RuntimeError(f"{' '.join(command[1:])} ended with {done.returncode}:\n{done.stderr[-2000:]}")
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    best = {name: {key: min(run[key] for run in runs) for key in runs[0]} for name, runs in found.items()}
    return best | {
        "memory_share": best["chunked"]["peak_bytes"] / best["plain"]["peak_bytes"],
        "time_share": best["chunked"]["seconds"] / best["plain"]["seconds"],
        "bars": {"memory_share": 0.25, "time_share": 1.0},
    }


def attention(settings: Callable[..., LearnerSettings], segments: Sequence[Segment], device: torch.device) -> Any:
    chosen = settings()
    encoder = PromptEncoder(chosen)
    vision = [prompt.vision for prompt in encoder.encode_all(segments)]
    encoder.close()
    policy = build_policy(chosen).to(device).eval()
    masked = build_policy(chosen).to(device).eval()
    masked.core.set_attn_implementation("sdpa")
    row = collate(policy, segments, vision, device)
    alone = [collate(policy, [s], [v], device) for s, v in zip(segments, vision, strict=True)]
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "per_segment": lambda: policy.hidden(row),
        "masked": lambda: masked.hidden(row),
        "separate": lambda: torch.cat([policy.hidden(batch) for batch in alone], dim=1),
    }
    with torch.no_grad():
        hidden = {name: call().float() for name, call in calls.items()}
        seconds = by_turns(dict(calls), device)
    largest = float(hidden["separate"].abs().max())
    return {
        "tokens": row.num_tokens,
        "segments": len(segments),
        **{
            name: {
                "seconds": seconds[name],
                "of_separate": seconds[name] / seconds["separate"],
                "max_difference": float((hidden[name] - hidden["separate"]).abs().max()) / largest,
            }
            for name in calls
        },
    }


def collate(policy: Policy, segments: Sequence[Segment], vision: Sequence[Vision], device: torch.device) -> Batch:
    dtype = next(policy.parameters()).dtype
    return collate_packed(segments, vision, policy.rope_index).to(device, dtype)


def show(packing: Any, head: Any, packed_attention: Any) -> None:
    columns = ["tokens", "packed tokens/s", "padded tokens/s", "ratio", "allowed", "reached", "bar"]
    print_table("Optimizer steps of 16 LVIS-like segments, one rank", columns, [list(packing.values())])
    rows = [[name, head[name]["peak_bytes"] / 2**20, head[name]["seconds"]] for name in ("plain", "chunked")]
    rows.append(["chunked / plain", head["memory_share"], head["time_share"]])
    rows.append(["bar", *head["bars"].values()])
    title = f"Loss and its gradients, V={VOCABULARY:,} T={TOKENS:,} H={HIDDEN:,}"
    print_table(title, ["head", "peak MiB above inputs", "seconds"], rows)
    rows = [[name, *packed_attention[name].values()] for name in ("per_segment", "masked", "separate")]
    title = f"Hidden states of {packed_attention['segments']} segments, {packed_attention['tokens']:,} tokens"
    print_table(title, ["attention", "seconds", "of separate", "max relative difference"], rows)


def main() -> None:
    join_alone()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = "bfloat16" if device.type == "cuda" else "float32"
    with tempfile.TemporaryDirectory(prefix="rollmatch-bench-") as name:
        folder = Path(name)
        start = tiny.write_checkpoint(folder / "model", **MODEL)
        segments = make_segments(folder)

        def settings(**changes: object) -> LearnerSettings:
            threads = len(os.sched_getaffinity(0))
            return tiny.settings(start, torch_dtype=dtype, num_threads=threads, **changes)

        packing = packed_and_padded(settings, segments, device)
        packed_attention = attention(settings, segments, device)
    head = loss_head()
    show(packing, head, packed_attention)
    model = {"vocabulary": VOCABULARY, "tokens": TOKENS, "hidden": HIDDEN}
    finish("learner", {"packing": packing, "head": model | head, "attention": packed_attention})


if __name__ == "__main__":
    main()
