"""Rollout actors that fail on request: the production actor around an engine that can be armed.

| armed with | what happens |
|---|---|
| `raise_in_step` | the engine's next step raises |
| `garbage` | the next completion holds random tokens instead of an answer |
| `raise_in_load` | the next load stops half-way with SyncError |
| `die_in_load` | the process dies in the middle of the next load |
| `wrong_checksum` | the next load attests another checksum |
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from actors.engine import LoadReport, RolloutEngine
from actors.rollout_actor import RolloutActor
from actors.simulation import SimulatedActor
from protocol.contracts import Completion, RolloutRequest
from protocol.errors import SyncError
from protocol.weights import Bucket, WeightsManifest


class FaultyEngine:
    """Hands everything to the real engine, but for the one fault it is armed with."""

    def __init__(self, engine: RolloutEngine, arms: list[str]) -> None:
        self._engine = engine
        self._arms = arms

    @property
    def version(self) -> int:
        return self._engine.version

    @property
    def num_unfinished(self) -> int:
        return self._engine.num_unfinished

    def prepare(self, request: RolloutRequest) -> Any:
        return self._engine.prepare(request)

    def submit(self, request: RolloutRequest, prepared: Any) -> None:
        self._engine.submit(request, prepared)

    def step(self) -> list[Completion]:
        if self._fires("raise_in_step"):
            raise RuntimeError("injected: the device is lost")
        done = self._engine.step()
        if done and self._fires("garbage"):
            noise = np.random.default_rng(0).integers(0, 100, 60).astype(np.int32)
            done[0] = replace(done[0], token_ids=noise)
        return done

    def load_weights(self, manifest: WeightsManifest, buckets: Sequence[Bucket]) -> LoadReport:
        if self._fires("raise_in_load"):
            raise SyncError("injected: the load stopped half-way")
        if self._fires("die_in_load"):
            os._exit(9)
        report = self._engine.load_weights(manifest, buckets)
        if self._fires("wrong_checksum"):
            return replace(report, bucket_checksums=("injected",))
        return report

    def abort_all(self) -> None:
        self._engine.abort_all()

    def close(self) -> None:
        self._engine.close()

    def _fires(self, kind: str) -> bool:
        if kind not in self._arms:
            return False
        self._arms.remove(kind)
        return True


class FaultySimulatedActor(SimulatedActor):
    """Scripted answers; starts in milliseconds."""

    def _open(self) -> Callable[[], RolloutEngine]:
        self._arms: list[str] = []
        build = super()._open()
        return lambda: FaultyEngine(build(), self._arms)

    def arm(self, kind: str) -> None:
        self._arms.append(kind)


class FaultyVllmActor(RolloutActor):
    """Real vLLM."""

    def _open(self) -> Callable[[], Any]:
        self._arms: list[str] = []
        build = super()._open()
        return lambda: FaultyEngine(build(), self._arms)

    def arm(self, kind: str) -> None:
        self._arms.append(kind)
