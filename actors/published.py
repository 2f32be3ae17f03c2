"""What the engines must serve now: the newest location of every tensor, assembled from full and partial publishes.

A partial publish holds only the tensors that changed. An engine that restarts has none of the earlier ones, so it is
given the composite: for each tensor the bucket that held it last. Buckets that no tensor points to any more are
forgotten, which frees them in the object store.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from actors.engine import LoadReport
from protocol.errors import NothingChangedError, SyncError
from protocol.weights import TensorEntry, WeightsManifest

log = logging.getLogger("rollmatch.sync")

REAL_RATE = 1e-8
"""AdamW moves a parameter by about the learning rate. Below this, that is less than a ten-thousandth of the distance
between neighbours in bfloat16 at 0.02, a usual weight: rounding can hide a whole step, as where a decay ends at 0."""


class PublishedWeights:
    """The driver's view of the current policy; `refs` are opaque."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[TensorEntry, str, Any]] = {}
        """Tensor name → its entry, the checksum of its bucket, the bucket's reference."""
        self.latest: tuple[WeightsManifest, list[Any]] | None = None

    @property
    def version(self) -> int | None:
        """Policy version of the last publish; None before the first."""
        return self.latest[0].version if self.latest else None

    @property
    def can_be_fetched(self) -> bool:
        """Whether `full` can serve the last publish to an engine that comes later."""
        return self.latest is not None and self.latest[0].group is None

    @property
    def was_broadcast(self) -> bool:
        """Whether the last publish is gone for an engine that comes later."""
        return self.latest is not None and self.latest[0].group is not None

    def update(self, manifest: WeightsManifest, refs: Sequence[Any]) -> None:
        """Takes a publish. The first must be full."""
        assert manifest.full or self.latest, "the first publish must be full"
        if manifest.full:
            self._entries.clear()
        if manifest.group is not None:  # broadcast: nothing is left to read later
            self.latest = (manifest, [])
            return
        for entry in manifest.tensors:
            self._entries[entry.name] = (entry, manifest.bucket_checksums[entry.bucket], refs[entry.bucket])
        self.latest = (manifest, list(refs))

    def full(self) -> tuple[WeightsManifest, list[Any]]:
        """The composite: everything an engine without any publish needs to serve the current version."""
        assert self.latest is not None, "nothing was published yet"
        refs: list[Any] = []
        checksums: list[str] = []
        positions: dict[Any, int] = {}
        tensors = []
        for entry, digest, ref in self._entries.values():
            if ref not in positions:
                positions[ref] = len(refs)
                refs.append(ref)
                checksums.append(digest)
            tensors.append(replace(entry, bucket=positions[ref]))
        manifest = replace(self.latest[0], full=True, tensors=tuple(tensors), bucket_checksums=tuple(checksums))
        return manifest, refs


def check_attested(engine: str, report: LoadReport, manifest: WeightsManifest) -> None:
    """SyncError when an engine loaded something else than what was published (SPEC A17)."""
    if (report.version, report.bucket_checksums) != (manifest.version, manifest.bucket_checksums):
        raise SyncError(
            f"{engine}: serves version {report.version} with checksums {report.bucket_checksums[:1]}..., published was "
            f"{manifest.version} with {manifest.bucket_checksums[:1]}...; the engine is restarted"
        )


def check_changed(manifest: WeightsManifest) -> None:
    """NothingChangedError when the engines would serve what they served before (SPEC A17).

    Nothing need change where every step since the publish before was skipped or had a rate of 0; a warning where none
    had a rate that rounding shows.
    """
    rate = manifest.extra.get("largest_learning_rate", math.inf)
    if manifest.extra.get("optimizer_steps", 1.0) == 0 or rate == 0 or manifest.changed_tensors > 0:
        return
    if rate < REAL_RATE:
        log.warning(
            "version %d: 0 of %d published tensors changed: rounding hides a learning rate of %.1e; where that is not "
            "the end of a schedule, raise training.learning_rate, and cosine_with_min_lr would end at training.min_lr",
            manifest.version,
            len(manifest.tensors),
            rate,
        )
        return
    raise NothingChangedError(
        f"version {manifest.version}: an optimizer step ran at a learning rate of {rate:.1e} and 0 of "
        f"{len(manifest.tensors)} published tensors changed; check training.learning_rate, tuner.* (is everything "
        "frozen?) and model.torch_dtype (rounding)"
    )


FROM_PRODUCER = ("merge_s", "put_s", "rounding_lost_share")
"""Names of `manifest.extra` that are metrics under `sync/`."""


def publish_metrics(manifest: WeightsManifest) -> dict[str, float]:
    """What the learner's part of a publish cost, and how much was published."""
    producer = {f"sync/{name}": manifest.extra[name] for name in FROM_PRODUCER if name in manifest.extra}
    return producer | {
        "sync/bytes": float(sum(entry.num_bytes for entry in manifest.tensors)),
        "sync/changed_tensors": float(manifest.changed_tensors),
    }


def load_metrics(reports: Sequence[LoadReport]) -> dict[str, float]:
    """What a publish cost the engines, phase by phase; the slowest in each."""

    def slowest(name: str) -> float:
        return max((float(getattr(report, name)) for report in reports), default=0.0)

    return {
        "sync/fetch_s": slowest("fetch_seconds"),
        "sync/load_s": slowest("load_seconds"),
        "sync/resume_s": slowest("resume_seconds"),
    }
