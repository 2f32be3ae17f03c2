"""Pixels ↔ bins: one formula each way, everywhere (SPEC A14)."""

from __future__ import annotations

from collections.abc import Sequence

from protocol.vocab import NUM_BINS


def to_bin(value: float, side: float) -> int:
    """`clamp(round(1000 * value / side), 0, 999)`, half to even; `side` is the image's side in pixels, > 0.

    A coordinate on the far border would be bin 1000 and becomes 999.
    """
    if not side > 0:
        raise ValueError(f"side must be > 0 pixels, got {side}; the record owes the image's size")
    return min(max(round(NUM_BINS * value / side), 0), NUM_BINS - 1)


def to_bins(values: Sequence[float], width: float, height: float) -> tuple[int, ...]:
    """Flat x, y, x, y, ... in pixels as bins: `to_bins([383.5, 100], 768, 512)` → `(499, 195)`."""
    return tuple(to_bin(value, height if at % 2 else width) for at, value in enumerate(values))


def to_pixels(bins: Sequence[int], width: float, height: float) -> tuple[float, ...]:
    """Flat bins as pixels, `bin / 1000 * side`."""
    return tuple(bin_ / NUM_BINS * (height if at % 2 else width) for at, bin_ in enumerate(bins))
