"""Texts as vectors: the one door to sentence-transformers."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.errors import ConfigError

WHERE = "custom.extra.rollout_matching.desc_monitor.semantic_model"
MOST_REMEMBERED = 20_000
"""Texts whose vectors are kept: 30 MB at 384 floats each."""

Vector = npt.NDArray[np.float32]


class TextEncoder:
    """Mean-pooled, L2-normalised vectors (SPEC 16), remembered per text. Safe to call from several threads."""

    def __init__(self, model: str, *, device: str, batch_size: int, max_length: int) -> None:
        """Loads from disk only. ConfigError when the model cannot be loaded."""
        from sentence_transformers import SentenceTransformer

        try:
            self._model: Any = SentenceTransformer(model, device=_device(device), local_files_only=True)
            self._model.max_seq_length = max_length
        except Exception as error:  # a library of many parts: whatever it raises, the setting is what to look at
            raise ConfigError(
                f"{WHERE}: {model} cannot be loaded ({type(error).__name__}: {error}); "
                "name a folder or a model in the local cache, or set desc_monitor.mode to exact"
            ) from error
        self._batch_size = batch_size
        self._vectors: dict[str, Vector] = {}
        self._lock = threading.Lock()

    def similarities(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Cosine of each pair of texts."""
        with self._lock:
            self._remember({text for pair in pairs for text in pair})
            return [float(self._vectors[left] @ self._vectors[right]) for left, right in pairs]

    def _remember(self, texts: set[str]) -> None:
        if len(self._vectors) + len(texts) > MOST_REMEMBERED:
            self._vectors.clear()
        fresh = sorted(texts - self._vectors.keys())
        if fresh:
            vectors = self._model.encode(
                fresh, batch_size=self._batch_size, normalize_embeddings=True, show_progress_bar=False
            )
            self._vectors.update(zip(fresh, np.asarray(vectors, dtype=np.float32), strict=True))


def _device(name: str) -> str:
    """`auto` is the first GPU if there is one."""
    import torch

    if name != "auto":
        return name
    return "cuda:0" if torch.cuda.is_available() else "cpu"
