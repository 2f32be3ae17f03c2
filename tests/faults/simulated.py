"""A pool of simulated actors on real Ray, for the fault suite."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from actors.pool import RolloutPool
from actors.rollout_actor import THREADS
from actors.simulation import Simulation
from actors.supervision import PoolSettings
from protocol.contracts import GroundTruth, Record, Shape
from tests.faults.faulty_actors import FaultySimulatedActor
from tests.faults.harness import CountingLearner, FaultRun, tiny_publish

log = logging.getLogger(__name__)
STORE = 200 * 2**20


class DrawnRecords:
    """Records with a few objects and no image."""

    def __len__(self) -> int:
        return 10_000

    def read(self, rows: Iterable[tuple[int, int]]) -> Iterator[Record]:
        for index, _ in rows:
            objects = tuple(
                GroundTruth(index=n, desc=f"thing {n}", shape=Shape("bbox_2d", (100 * n, 50, 100 * n + 80, 400)))
                for n in range(1, 2 + index % 5)
            )
            yield Record(index=index, source=f"drawn:{index}", images=("-",), width=8, height=8, objects=objects)


def simulated_run(
    nodes: TwoNodes | None,
    *,
    seed: int,
    scratch: Path | None = None,
    num_actors: int = 3,
    max_staleness: int = 1,
    in_flight: Any = "drain",
    step_s: float = 0.02,
) -> FaultRun:
    """Rollouts of some tenths of a second; deadlines of a few seconds."""
    remote = ray.remote(num_cpus=0, concurrency_groups=THREADS)(FaultySimulatedActor)

    def spawn(name: str) -> Any:
        first = nodes is not None and name.startswith("actor-0")
        return remote.options(resources={"losable": 1} if first else {}).remote(Simulation(step_s=step_s))

    limits = PoolSettings(
        num_actors=num_actors,
        max_in_flight_per_actor=64,
        startup_timeout_s=60,
        stall_timeout_s=4,
        sync_timeout_s=20,
        max_restarts=5,
        max_retries=5,
        in_flight=in_flight,
        heartbeat_s=0.5,
        restart_backoff_s=0.1,
    )
    return FaultRun(
        pool=RolloutPool(limits, spawn, None),
        records=DrawnRecords(),
        learner=CountingLearner(tiny_publish, step_s=0.1),
        max_staleness=max_staleness,
        recovery_s=90,
        lose_node=nodes.lose if nodes else None,
        seed=seed,
    )


def started(head: dict[str, Any]) -> Cluster:
    """A cluster of one node. Ray's node manager ends itself where its agent needs more than 15 s to start, which
    happens on a loaded machine and is no fault that is tested here: so it is tried three times."""
    for _ in range(2):
        try:
            return Cluster(initialize_head=True, connect=True, head_node_args=head)
        except Exception as error:  # Ray raises nothing narrower
            log.warning("the test cluster did not start: %s", error)
            ray.shutdown()
    return Cluster(initialize_head=True, connect=True, head_node_args=head)


class TwoNodes:
    """A head node and one that can be lost, on one machine.

    All objects go through the object store, as large ones do.
    """

    def __init__(self) -> None:
        # The test utility hands no token to its second node; the cluster is private to this process.
        assert os.environ.get("RAY_AUTH_MODE") == "disabled", "start this process with RAY_AUTH_MODE=disabled"
        system = {"max_direct_call_object_size": 100}
        head = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": STORE, "_system_config": system}
        self._cluster = started(head)
        self._node = self._add()

    def lose(self) -> None:
        self._cluster.remove_node(self._node, allow_graceful=False)
        self._node = self._add()

    def close(self) -> None:
        ray.shutdown()
        self._cluster.shutdown()

    def _add(self) -> Any:
        return self._cluster.add_node(num_cpus=1, resources={"losable": 1}, object_store_memory=STORE)
