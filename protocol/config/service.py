"""Sections that exist only here: actors, segment buffer, weight sync, cluster, quarantine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from protocol.config.base import (
    NonEmpty,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    Section,
    require,
)

MIB = 2**20


class RolloutConfig(Section):
    """The rollout actors as a pool."""

    num_actors: PositiveInt = 1
    """Engines that generate."""
    max_staleness: NonNegativeInt = 0
    """Published versions by which a segment may lag behind when its window is trained; 0 is exactly on-policy."""
    max_in_flight_per_actor: PositiveInt = 256
    """Most requests that one actor holds, running or waiting."""
    startup_timeout_s: PositiveFloat = 900.0
    """Seconds until an actor must be ready."""
    request_timeout_s: PositiveFloat = 300.0
    """Seconds without progress (no engine step although requests are owed, or no heartbeat) after which an actor is
    restarted; after half of it, it gets no new requests."""
    heartbeat_s: PositiveFloat = 10.0
    """Seconds without a word of an actor after which it is asked how far its engine is; over hundreds of actors
    these calls add up in the driver."""
    max_retries: NonNegativeInt = 3
    """Actors that may die with a request before it is a suspect, sent with fewer others and at last alone; if that one
    dies too, the record is quarantined."""
    max_restarts: NonNegativeInt = 5
    """Restarts of an actor in a row, without an answer in between, before it is given up."""
    min_healthy: PositiveInt = 1
    """Fewest actors that are not given up with which the run goes on."""
    record_bytes: NonNegativeInt = 64 * MIB
    """Bytes of recorded rollouts that a run keeps, the newest, for `rollmatch replay` and the report; 0: none."""

    @model_validator(mode="after")
    def _enough_actors(self) -> RolloutConfig:
        if self.min_healthy > self.num_actors:
            message = f"must be <= num_actors {self.num_actors}, got {self.min_healthy}; lower it, or add actors"
            require([Problem(("min_healthy", "num_actors"), message)])
        return self


class BufferConfig(Section):
    """Segments between actors and learner."""

    max_bytes: PositiveInt = 1024 * MIB
    """Bytes of segments that may wait or be in the making; admission reserves the largest segment for each request."""
    max_segments: PositiveInt = 4096
    """Segments that may wait; must hold every window that `rollout.max_staleness` lets in."""


class SyncConfig(Section):
    """How weights reach the engines."""

    backend: Literal["object_store", "nccl"] = "object_store"
    """`object_store` works everywhere; `nccl` broadcasts between GPUs (not verified on a GPU)."""
    in_flight: Literal["drain", "continue", "abort"] = "drain"
    """What happens to running rollouts at a sync: they end first (`drain`); they go on with the new weights, and what
    was computed for them is computed again (`continue`); or they start over (`abort`). Without effect at
    `max_staleness` 0, where none is running."""
    bucket_bytes: PositiveInt = 256 * MIB
    """Bytes per weight bucket."""
    timeout_s: PositiveFloat = 600.0
    """Seconds until every engine must have attested a version."""
    debug_skip_publish: bool = False
    """Test switch: publish nothing, so that the run must stop with the error of SPEC A17."""


class ClusterConfig(Section):
    """Ray resources."""

    address: str | None = None
    """Ray cluster to join, `auto` for the one of this node. Null: start a local one and stop it at the end."""
    num_learners: PositiveInt = 1
    """Learner ranks."""
    gpus_per_learner: NonNegativeFloat = 0.0
    """GPUs per learner rank; 0 trains on CPU."""
    gpus_per_actor: NonNegativeFloat = 0.0
    """GPUs per rollout actor; 0 generates on CPU."""
    cpus_per_learner: PositiveFloat = 1.0
    """CPU cores per learner rank; also its number of threads."""
    cpus_per_actor: PositiveFloat = 1.0
    """CPU cores per rollout actor; also its number of threads on CPU."""
    colocate: bool = False
    """One actor and one learner rank share a GPU by turns: the engine sleeps while the learner trains, the learner's
    states go to host memory while it generates. Needs `rollout_matching.offload` with both parts, `max_staleness` 0,
    and shares of the GPU that add up to 1 at most."""
    learner_resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Custom Ray resources that each learner rank takes, such as `{trainer: 1}`."""
    actor_resources: dict[str, PositiveFloat] = Field(default_factory=dict)
    """Custom Ray resources that each rollout actor takes."""
    learner_labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels that a learner rank's node must have, such as `{pool: train}`."""
    actor_labels: dict[str, str] = Field(default_factory=dict)
    """Ray node labels that a rollout actor's node must have."""
    autoscaling: bool = False
    """The joined cluster can add nodes: wait for them, instead of refusing what today's nodes could never hold."""
    gpu_memory_gib: PositiveFloat = 80.0
    """Memory of one GPU in GiB, for the estimates of `rollmatch plan` and `rollmatch check`."""
    placement_timeout_s: PositiveFloat = 600.0
    """Seconds until the cluster must have room for every learner rank and rollout actor."""
    object_store_bytes: PositiveInt | None = None
    """Bytes of the object store of a local cluster, and of each worker pod. Null: Ray's choice."""
    step_timeout_s: PositiveFloat = 1800.0
    """Seconds until every learner rank must have loaded its model, and finished an optimizer step or a checkpoint."""
    max_learner_restarts: NonNegativeInt = 3
    """How often a run whose learner failed goes back to the same checkpoint before it ends: with a newer one the count
    begins again. 0: it ends at once."""


class MetricsConfig(Section):
    """The driver's HTTP endpoint: `/metrics` for Prometheus, `/healthz`, `/readyz`."""

    enabled: bool = True
    """Serve the endpoint; files and TensorBoard are written in any case."""
    host: NonEmpty = "127.0.0.1"
    """Address to listen on. The endpoint has no password: `0.0.0.0` belongs inside a cluster's network only."""
    port: Annotated[int, Field(ge=0, le=65535)] = 9095
    """Port to listen on; 0 takes a free one. The address in use is logged and written into the run's folder, to
    `metrics_address` and, for Prometheus' `file_sd_configs`, to `scrape_targets.json`."""
    healthy_within_s: PositiveFloat = 900.0
    """Seconds without any progress after which `/healthz` answers 503. Must exceed the start of an engine and the
    longest optimizer step."""
    vllm: bool = False
    """Export vLLM's own engine metrics (`ray_vllm_*`) through the metrics port of each Ray node; the addresses are in
    `scrape_targets.json` in the run's folder."""


class QuarantineConfig(Section):
    """Records that cannot be trained on."""

    max_records: NonNegativeInt = 100
    """More distinct records than this stop the run."""
