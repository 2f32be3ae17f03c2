"""Weights of a vLLM engine, as far as they need no vLLM: the agreement of its workers."""

from __future__ import annotations

import pytest

from actors.vllm_weights import agreed
from protocol.errors import SyncError


def test_workers_that_received_different_bytes_fail_the_sync() -> None:
    assert agreed([("a", "b"), ("a", "b")], 3) == ("a", "b")
    with pytest.raises(SyncError, match="version 3: the engine's 2 workers received different bytes"):
        agreed([("a", "b"), ("a", "c")], 3)
