"""Run-length masks of instance files, read without trust: a file's counts may not fit its size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.record_lines import MAX_IMAGE_PIXELS


def decode_rle(segmentation: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """[height, width] mask of COCO's `{"size": [h, w], "counts": runs or text}`; runs go down the columns.

    ValueError where this is no such mask, the runs do not fill it exactly, or it is larger than any image may be.
    """
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if not isinstance(size, list) or len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
        raise ValueError(f"size must be [height, width], got {size!r}")
    if size[0] * size[1] > MAX_IMAGE_PIXELS:
        raise ValueError(f"size is {size[0]} x {size[1]}, the most is {MAX_IMAGE_PIXELS} cells")
    if isinstance(counts, bytes):
        counts = counts.decode("ascii")
    runs = _runs_of_text(counts) if isinstance(counts, str) else counts
    if not isinstance(runs, list) or not all(isinstance(run, int) and run >= 0 for run in runs):
        raise ValueError("counts must be runs >= 0 or their text")
    if sum(runs) != size[0] * size[1]:
        raise ValueError(f"counts cover {sum(runs)} cells, expected {size[0]} x {size[1]}")
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, runs).reshape(size, order="F")


def _runs_of_text(text: str) -> list[int]:
    """COCO's text: 5 bits per character from `0` on, bit 5 says that more follow; from the fourth run on each is the
    difference to the one two before it."""
    runs: list[int] = []
    value = shift = 0
    for code in _codes(text):
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift  # the highest of the bits is the sign
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("counts end within a number")
    return runs


def _codes(text: str) -> Sequence[int]:
    codes = [ord(char) - ord("0") for char in text]
    if any(not 0 <= code < 64 for code in codes):
        raise ValueError("counts hold a character that encodes nothing")
    return codes
