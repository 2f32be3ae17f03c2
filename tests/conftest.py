"""What every part of the tests shares."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Takes what the imports left (torch, Ray and DeepSpeed: some million objects) out of every later collection."""
    gc.collect()
    gc.freeze()
