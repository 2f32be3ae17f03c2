"""What every part of the tests shares."""

from __future__ import annotations

import gc
import os

_IS_WORKER = "PYTEST_XDIST_WORKER" in os.environ
"""Only the unit tests run in workers; elsewhere the libraries' own order at the interpreter's end is left alone."""


def pytest_collection_finish() -> None:
    """Takes what the imports left (torch, Ray and DeepSpeed: some million objects) out of every later collection."""
    if _IS_WORKER:
        gc.collect()
        gc.freeze()


def pytest_sessionfinish() -> None:
    """Gives it back, so that the interpreter ends as it would have."""
    gc.unfreeze()
