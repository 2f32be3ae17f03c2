"""`rollmatch evaluate --attest CHECKPOINT`: does an engine that takes a publish serve what the checkpoint exports?

Engines run one after another, so that one GPU is enough. The first is probed before and after it takes the publish:
before, to show how much of the export the probes can see at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from rich.console import Console
from rich.table import Table

from actors.attestation import LOGPROB_TOLERANCE, AttestedEngine, Comparison, Served, compare
from actors.engine import LoadReport
from actors.published import check_attested
from actors.ray_calls import get
from actors.settings import ActorSettings
from actors.vllm_environment import engine_environment
from deploy.check import require_clean
from deploy.cluster import EVALUATION_LOGS, ray_session
from deploy.inputs import validation_records
from deploy.placement import Placement, reserve
from learner.export import read_merged
from learner.publisher import publish_as_is
from protocol.config import RunConfig
from protocol.contracts import EVALUATION_EPOCH, Record, RequestKey, RolloutRequest
from protocol.errors import ConfigError
from protocol.weights import WeightsManifest

LORA_OPTIONS = frozenset({"enable_lora", "max_lora_rank", "max_loras", "enable_tower_connector_lora"})


@dataclass(frozen=True, slots=True)
class Attestation:
    """The export is attested where the engine serves it, and the probes would have seen an engine that does not."""

    export: Comparison
    """The engine that took the publish, and one that was started on the export."""
    start: Comparison
    """The same engine before and after: what the publish moved, as far as the probes see it."""

    @property
    def verdict(self) -> str:
        """`the same`, `DIFFERENT`, or `inconclusive`: an engine that ignored the publish would look the same too."""
        if not self.export.same:
            return "DIFFERENT"
        return "inconclusive: the probes cannot tell the export from the start" if self.start.same else "the same"

    @property
    def attested(self) -> bool:
        return self.export.same and not self.start.same

    def as_json(self) -> dict[str, Any]:
        return {
            "attested": self.attested,
            "same": self.export.same,
            "export": asdict(self.export),
            "moved": asdict(self.start),
        }


def attest(config: RunConfig, checkpoint: Path, num_records: int) -> Attestation:
    """Starts two engines in turn and compares them.

    Raises ConfigError where there is no export or no validation record; SyncError when the publish does not attest.
    """
    require_clean(config, learners=False)
    if config.matching.rollout_backend != "vllm":
        raise ConfigError("custom.extra.rollout_matching.rollout_backend: --attest compares vLLM engines; write vllm")
    export = checkpoint / "merged"
    if not export.is_dir():
        raise ConfigError(f"--attest: {checkpoint} has no folder merged; name a checkpoint-N folder of a run")
    records = [line.parse() for line in islice(validation_records(config), num_records)]
    if not records:
        raise ConfigError("custom.val_jsonl: is missing, and the probes need records; name a file of records")
    settings = _serving_merged_weights(ActorSettings.from_config(config))
    started_on_export = replace(settings, engine=replace(settings.engine, model=str(export)))
    logs = config.run_dir / EVALUATION_LOGS
    with ray_session(config, logs), reserve(config, learners=False) as placement:
        before, live = _served_live(config, settings, placement, export, _requests(records))
        fresh = _Engine(config, started_on_export, placement)
        try:
            return Attestation(compare(live, fresh.served(_requests(records))), compare(before, live))
        finally:
            fresh.close()


def print_attestation(found: Attestation, *, console: Console | None = None) -> None:
    """One row per kind of evidence."""
    table = Table(title=f"The publish against the export: {found.verdict}")
    for column in ("evidence", "compared", "moved by the publish", "differ from the export"):
        table.add_column(column, justify="left" if column == "evidence" else "right")
    export, start = found.export, found.start
    weights, answers = len(start.differing_weights), len(start.differing_answers)
    table.add_row("weights (vLLM's digests)", f"{export.num_weights}", f"{weights}", f"{len(export.differing_weights)}")
    table.add_row("greedy answers", f"{export.num_answers}", f"{answers}", f"{len(export.differing_answers)}")
    table.add_row(
        f"log-probabilities (limit {LOGPROB_TOLERANCE:g})",
        f"{export.num_answers} answers",
        f"{start.max_logprob_difference:.3g}",
        f"{export.max_logprob_difference:.3g}",
    )
    console = console or Console()
    console.print(table)
    for name in (*export.differing_weights[:5], *export.differing_answers[:5]):
        console.print(f"differs: {name}")


class _Engine:
    """One engine in a process of its own; every call has a deadline of the configuration."""

    def __init__(self, config: RunConfig, settings: ActorSettings, placement: Placement) -> None:
        self._limits = config.rollout
        self._sync_s = config.sync.timeout_s
        self._handle = (
            ray.remote(AttestedEngine)
            .options(
                **placement.options("actor", 0),
                runtime_env={"env_vars": engine_environment(settings.engine)},
            )
            .remote(settings)
        )
        self._name = f"an engine on {settings.engine.model}"

    def served(self, requests: Sequence[RolloutRequest]) -> Served:
        limit = self._limits.startup_timeout_s + len(requests) * self._limits.request_timeout_s
        served: Served = get(self._handle.served.remote(requests), limit, f"{self._name} to answer the probes")
        return served

    def load(self, manifest: WeightsManifest, refs: Sequence[Any]) -> None:
        what = f"{self._name} to load version {manifest.version}"
        report: LoadReport = get(self._handle.load.remote(manifest, refs), self._sync_s, what)
        check_attested(self._name, report, manifest)

    def close(self) -> None:
        ray.kill(self._handle)


def _served_live(
    config: RunConfig, settings: ActorSettings, placement: Placement, export: Path, requests: Sequence[RolloutRequest]
) -> tuple[Served, Served]:
    """What an engine on the start checkpoint serves before and after it takes the export as a publish."""
    engine = _Engine(config, settings, placement)
    try:
        before = engine.served(requests)
        refs, manifest = [], None
        for item in publish_as_is(read_merged(export), 1, config.sync.bucket_bytes):
            if isinstance(item, WeightsManifest):
                manifest = item
            else:
                refs.append(ray.put(item))
        assert manifest is not None, "a publish ends with its manifest"
        engine.load(manifest, refs)
        return before, engine.served(requests)
    finally:
        engine.close()


def _serving_merged_weights(settings: ActorSettings) -> ActorSettings:
    """An export is merged, also where the run pushed adapters."""
    options = {name: value for name, value in settings.engine.options.items() if name not in LORA_OPTIONS}
    return replace(settings, engine=replace(settings.engine, options=options))


def _requests(records: Sequence[Record]) -> list[RolloutRequest]:
    return [
        RolloutRequest(key=RequestKey(record=record.index, epoch=EVALUATION_EPOCH), record=record, seed=0)
        for record in records
    ]
