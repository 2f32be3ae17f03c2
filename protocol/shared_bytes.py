"""Bytes that reach the object store as fast as memory is copied, whatever the size of the array.

Ray copies a buffer of more than 1 MiB with threads that it starts for that buffer. For a few MiB, which most tensors of
a model are, starting them takes about as long as the copy. So an array of that size is pickled as several buffers. The
store lays them behind each other, so the reader sees one array again, and copies only where that should not be so.
`python -m benchmarks.weight_sync` measures the whole way.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, SupportsIndex

import numpy as np
import numpy.typing as npt

PIECE = 1 << 20
"""Bytes; a multiple of the store's alignment. Ray's threads begin above it."""
WHOLE_FROM = 16 * PIECE
"""From here on Ray's threads are worth their start."""


class SharedBytes(np.ndarray[tuple[int], np.dtype[np.uint8]]):
    """A flat uint8 array that is pickled in pieces; what is read back is a plain read-only array."""

    @classmethod
    def of(cls, array: npt.NDArray[np.uint8]) -> SharedBytes:
        """The same memory."""
        return array.view(cls)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        flat = self.view(np.ndarray)
        if int(protocol) < 5 or not PIECE < flat.nbytes < WHOLE_FROM:
            return flat.__reduce_ex__(protocol)  # type: ignore[return-value]
        pieces = [pickle.PickleBuffer(flat[start : start + PIECE].data) for start in range(0, flat.nbytes, PIECE)]
        return joined, tuple(pieces)


def joined(*buffers: Any) -> npt.NDArray[np.uint8]:
    """One array over buffers that follow each other in memory; a copy of them where they do not."""
    pieces = [np.frombuffer(buffer, dtype=np.uint8) for buffer in buffers]
    ends = [piece.ctypes.data + piece.nbytes for piece in pieces[:-1]]
    if ends != [piece.ctypes.data for piece in pieces[1:]]:
        return np.concatenate(pieces)
    # The first piece keeps the store's object, and with it all pieces, in memory.
    num_bytes = sum(piece.nbytes for piece in pieces)
    return np.lib.stride_tricks.as_strided(pieces[0], shape=(num_bytes,), writeable=False)
