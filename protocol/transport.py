"""Targets of matched coordinate slots: ground-truth bins, moved onto the predicted vertices where the shapes differ
in kind or in number of points (SPEC 8). Entropic optimal transport in float32."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.contracts import Shape
from protocol.geometry import ring
from protocol.vocab import NUM_BINS

Float32Array = npt.NDArray[np.float32]

_MAX_EXPONENT = 50.0
"""Beyond 50 epsilon the kernel is flat: shapes far apart collapse to a centroid, as the reference's do."""


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """How mass moves from predicted to true vertices."""

    cost: str = "l2"
    """`l1` or `l2` distance in bins."""
    epsilon: float = 10.0
    """Entropic regularisation in bins; 1 where it is not finite or not positive."""
    iterations: int = 30
    """Sinkhorn rounds, at least 1."""


def slot_bins(prediction: Shape, truth: Shape, settings: TransportSettings) -> tuple[int, ...]:
    """One target bin per coordinate token of `prediction`, in its order.

    Two boxes: the true values as they stand. Otherwise each predicted vertex gets the mean of the true vertices its
    mass goes to, rounded half to even; a predicted box gets the bounds of its four projected corners.
    """
    if prediction.geometry == "bbox_2d" and truth.geometry == "bbox_2d":
        return tuple(min(NUM_BINS - 1, max(0, bin_)) for bin_ in truth.bins)
    projected = project(ring(prediction).astype(np.float32), ring(truth).astype(np.float32), settings)
    if prediction.geometry == "bbox_2d":
        projected = np.stack([projected.min(axis=0), projected.max(axis=0)])
    bins = np.clip(np.rint(projected), 0, NUM_BINS - 1).astype(np.int64)
    return tuple(bins.ravel().tolist())


def project(sources: Float32Array, targets: Float32Array, settings: TransportSettings) -> Float32Array:
    """[n, 2] barycentric image of `sources` [n, 2] on `targets` [m, 2]: sum_j T_ij g_j / sum_j T_ij."""
    plan = sinkhorn_plan(_distances(sources, targets, settings.cost), settings)
    weights = plan / plan.sum(axis=1, keepdims=True)
    image: Float32Array = weights @ targets
    return image


def sinkhorn_plan(costs: Float32Array, settings: TransportSettings) -> Float32Array:
    """[n, m] transport plan between uniform marginals: K = exp(-C / epsilon), u = a / Kv, v = b / K'u, in turn."""
    epsilon = settings.epsilon if math.isfinite(settings.epsilon) and settings.epsilon > 0 else 1.0
    kernel = np.exp(np.clip(-costs / np.float32(epsilon), -_MAX_EXPONENT, _MAX_EXPONENT))
    num_sources, num_targets = costs.shape
    u, v = np.ones(num_sources, dtype=np.float32), np.ones(num_targets, dtype=np.float32)
    for _ in range(max(1, settings.iterations)):
        u = np.float32(1 / num_sources) / _positive(kernel @ v)
        v = np.float32(1 / num_targets) / _positive(kernel.T @ u)
    plan: Float32Array = u[:, None] * kernel * v[None, :]
    return plan


def _distances(a: Float32Array, b: Float32Array, cost: str) -> Float32Array:
    difference = a[:, None] - b[None]
    distances: Float32Array = (
        np.abs(difference).sum(axis=2) if cost == "l1" else np.sqrt((difference * difference).sum(axis=2))
    )
    return distances


def _positive(values: Float32Array) -> Float32Array:
    """Denominators; 1 where underflow left nothing."""
    return values if values.min() > 0 else np.where(values > 0, values, np.float32(1))
