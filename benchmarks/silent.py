"""The loop's other sides for benchmarks that measure the loop itself: nothing is trained, shown or saved."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import ray

from protocol.checksums import bucket_checksum
from protocol.segments import PackPlan
from protocol.weights import TensorEntry, WeightsManifest


class TimedStep:
    """An optimizer step that took its time."""

    busy_s: tuple[float, ...] = ()

    def metrics(self) -> dict[str, float]:
        return {}


class FreshLearner:
    """Takes `step_s` seconds per step and publishes eight bytes."""

    def __init__(self, step_s: float = 0.0) -> None:
        self._step_s = step_s
        self.busy_s = 0.0

    def train_step(self, plan: PackPlan, segment_refs: Sequence[Any]) -> TimedStep:
        time.sleep(self._step_s)
        self.busy_s += self._step_s
        return TimedStep()

    def publish(self, version: int, full: bool) -> tuple[WeightsManifest, list[Any]]:
        bucket = (np.full(8, version % 256, np.uint8),)
        entry = TensorEntry(name="w", dtype="uint8", shape=(8,), bucket=0, index=0, num_bytes=8)
        manifest = WeightsManifest(
            version=version, full=True, tensors=(entry,), bucket_checksums=(bucket_checksum(bucket),), changed_tensors=1
        )
        return manifest, [ray.put(bucket)]


class SilentObserver:
    """Tells `on_step` the number of each step."""

    on_step: Callable[[int], None] = staticmethod(lambda step: None)

    def step(self, step: int, metrics: dict[str, float]) -> None:
        self.on_step(step)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **kwargs: None


class SilentKeeper:
    """Never saves."""

    def due(self, step: int) -> bool:
        return False

    def snapshot(self, state: object, position: int) -> Callable[[], str]:
        return str
