"""Digest of bytes that cross from learner to engine; both sides compute it with this one function."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt


def checksum(array: npt.NDArray[np.uint8]) -> str:
    """BLAKE2b-128 of a flat uint8 array, in hex; about 1 GB/s on one core, nothing is copied."""
    return hashlib.blake2b(np.ascontiguousarray(array).data, digest_size=16).hexdigest()
