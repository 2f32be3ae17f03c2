"""An event's numbers beside the segment statistics: generation, packs, versions, evaluation time (SPEC 15)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from .packing import cost
from .segments import PackPlan, SegmentMeta


def evaluation_timing(num_samples: int, num_batches: int, runtime_seconds: float) -> dict[str, float]:
    """`eval_runtime` and its two rates; `runtime_seconds` is the slowest process's wall time."""
    return {
        "eval_runtime": runtime_seconds,
        "eval_samples_per_second": rate(num_samples, runtime_seconds),
        "eval_steps_per_second": rate(num_batches, runtime_seconds),
    }


def generation_metrics(new_tokens: Sequence[int], generate_seconds: float) -> dict[str, float]:
    """`rollout/gen_*` and `time/rollout_generate_s` over the rollouts generated for one event (SPEC 15).

    On reuse of a window (nothing generated, 0 seconds) only the time is there, as 0.
    """
    if generate_seconds <= 0:
        return {GENERATED: 0.0}
    return {
        GENERATED: generate_seconds,
        "rollout/gen_new_tokens_total": float(sum(new_tokens)),
        "rollout/gen_new_tokens_mean": rate(sum(new_tokens), len(new_tokens)),
        "rollout/gen_new_tokens_p90": percentile(new_tokens, 90),
        "rollout/gen_new_tokens_p99": percentile(new_tokens, 99),
        "rollout/gen_tokens_per_s": sum(new_tokens) / generate_seconds,
    }


GENERATED = "time/rollout_generate_s"
GENERATION = ("rollout/gen_", "time/rollout_", "time/wait_rollouts_s", "time/post_rollout_pack_s")
"""Prefixes of what generating a window costs: counted once per window (SPEC A12)."""


def window_metrics(first_step: int, reuse: int) -> dict[str, float]:
    """`rollout/buffer_*` of the optimizer step that trains a window for the (`reuse` + 1)-th time (SPEC 14, 15).

    `first_step`: optimizer steps that were done when the window began.
    """
    return {
        "rollout/buffer_reuse": float(reuse > 0),
        "rollout/buffer_window_step0": float(first_step),
        "rollout/buffer_completed_steps": float(reuse),
    }


def without_generation(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a window as its next M-step repeats them: nothing was generated for it (SPEC A12)."""
    kept = {name: value for name, value in metrics.items() if not name.startswith(GENERATION)}
    return kept | generation_metrics([], 0.0)


def repeats(name: str, metrics: Mapping[str, float]) -> bool:
    """Whether the event only says again what it says under `name`.

    An M-step trains a window whose rollouts were counted with its first step; restarts happen at any time.
    """
    reused = metrics.get("rollout/buffer_reuse", 0.0) > 0
    return reused and name.startswith("rollout/") and name != "rollout/actor_restarts"


def plan_metrics(
    plan: PackPlan, lengths: Sequence[int], capacity: int | None, min_fill: float = 0.0
) -> dict[str, float]:
    """`packing/*` of one plan: its forwards, how evenly its ranks are loaded, and, with a `capacity`, its fills.

    Packs that hold something, but less than `min_fill` of `capacity`, are underfilled.
    """
    packs = [pack for row in plan.micro_batches for pack in row]
    ranks = [
        cost([lengths[position] for pack in column for position in pack])
        for column in zip(*plan.micro_batches, strict=True)
    ]
    forwards = {
        "packing/micro_batches": float(len(plan.micro_batches)),
        "packing/empty_packs": float(sum(not pack for pack in packs)),
        "packing/cost_imbalance": rate((max(ranks) - min(ranks)) * len(ranks), sum(ranks)) if ranks else 0.0,
    }
    return forwards | ({} if capacity is None else _fills(plan, packs, lengths, capacity, min_fill))


def _fills(
    plan: PackPlan, packs: Sequence[Sequence[int]], lengths: Sequence[int], capacity: int, min_fill: float
) -> dict[str, float]:
    """Means over the packs (an empty one is a forward too); buffer: what is carried."""
    sizes = [sum(lengths[position] for position in pack) for pack in packs]
    return {
        "packing/post_rollout_fill": rate(sum(sizes), len(packs) * capacity),
        "packing/post_rollout_selected_total_len": rate(sum(sizes), len(packs)),
        "packing/post_rollout_segments": rate(sum(len(pack) for pack in packs), len(packs)),
        "packing/post_rollout_buffer": float(len(plan.carried)),
        "packing/underfilled_packs": float(sum(0 < size < min_fill * capacity for size in sizes)),
    }


def policy_metrics(metas: Iterable[SegmentMeta], version: int) -> dict[str, float]:
    """`policy/*` of the segments trained on top of `version`; only the version itself when there are none."""
    spans = [(meta.first_version, meta.last_version) for meta in metas]
    found = {"policy/version": float(version)}
    if spans:
        oldest = min(first for first, _ in spans)
        found["policy/first_version_min"] = float(oldest)
        found["policy/last_version_max"] = float(max(last for _, last in spans))
        found["policy/staleness_max"] = float(version - oldest)
    return found


def rate(numerator: float, denominator: float, *, empty: float = 0.0) -> float:
    return numerator / denominator if denominator > 0 else empty


def percentile(values: Sequence[int], percent: float) -> float:
    """Linearly interpolated; 0 for nothing."""
    return float(np.percentile(values, percent)) if len(values) else 0.0
