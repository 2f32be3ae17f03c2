"""Arrays pickled in pieces are the same arrays, without a copy where the store keeps them together."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.shared_bytes import PIECE, WHOLE_FROM, SharedBytes, joined


def content(num_bytes: int) -> SharedBytes:
    return SharedBytes.of(np.arange(num_bytes, dtype=np.uint32).astype(np.uint8))


def buffers_of(array: SharedBytes) -> tuple[bytes, list[pickle.PickleBuffer]]:
    found: list[pickle.PickleBuffer] = []
    return pickle.dumps(array, protocol=5, buffer_callback=found.append), found


@given(st.integers(0, 3 * PIECE + 7))
@settings(max_examples=20)
def test_whatever_the_size_the_array_is_the_same_after_pickling(num_bytes: int) -> None:
    array = content(num_bytes)
    data, buffers = buffers_of(array)

    assert np.array_equal(pickle.loads(data, buffers=buffers), array)
    assert np.array_equal(pickle.loads(pickle.dumps(array)), array), "in band, as a copy of the object may be"


@pytest.mark.parametrize(("num_bytes", "num_buffers"), [(PIECE, 1), (PIECE + 1, 2), (5 * PIECE, 5), (WHOLE_FROM, 1)])
def test_only_arrays_of_a_few_mib_travel_in_pieces(num_bytes: int, num_buffers: int) -> None:
    assert len(buffers_of(content(num_bytes))[1]) == num_buffers


def test_buffers_that_lie_behind_each_other_are_one_array_over_the_same_memory() -> None:
    memory = content(2 * PIECE + 64).view(np.ndarray)
    array = joined(memory[:PIECE].data, memory[PIECE : 2 * PIECE].data, memory[2 * PIECE :].data)

    assert array.ctypes.data == memory.ctypes.data
    assert np.array_equal(array, memory)
    assert not array.flags.writeable


def test_buffers_that_lie_elsewhere_are_copied_in_their_order() -> None:
    memory = content(2 * PIECE).view(np.ndarray)
    array = joined(memory[PIECE:].data, memory[:PIECE].data)

    assert np.array_equal(array, np.concatenate([memory[PIECE:], memory[:PIECE]]))
    assert not np.shares_memory(array, memory)
