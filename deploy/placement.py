"""Where learner ranks and rollout actors live: bundles from the configuration, one Ray placement group for them all.

One group holds every bundle, so a run gets all of its place or none: two jobs on one cluster cannot each hold half and
wait for the other. An actor or a rank that is restarted comes back into its own bundle.

| who waits | for what | who ends the wait | deadline |
|---|---|---|---|
| `reserve` | room for every bundle | the cluster: nodes join, other jobs end | `cluster.placement_timeout_s` |

`shares` and `never_fits` are functions of values; the manifests of `deploy/render.py` count with the same `shares`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from protocol.config import RunConfig
from protocol.errors import ConfigError, DeadlineError

log = logging.getLogger("rollmatch")

Role = Literal["learner", "actor"]
LOG_EVERY_S = 30.0


@dataclass(frozen=True, slots=True)
class Share:
    """What all processes of one role ask for; each of `count` bundles must fit on one node."""

    role: Role
    count: int
    resources: dict[str, float]
    """Of one bundle, under Ray's names: CPU, GPU and custom resources."""
    labels: dict[str, str] = field(default_factory=dict)
    """Ray node labels that the bundle's node must have."""

    def total(self, name: str) -> float:
        return self.count * self.resources.get(name, 0.0)


@dataclass(frozen=True, slots=True)
class Node:
    """A living node: its whole resources, whoever uses them now, and its labels."""

    resources: dict[str, float]
    labels: dict[str, str]


def shares(config: RunConfig, *, learners: bool = True) -> tuple[Share, ...]:
    """What the run places, learner ranks first; `learners=False` for an evaluation.

    An actor's GPUs are those of its tensor parallel group, so its bundle is one node's.
    """
    cluster = config.cluster
    actor = Share(
        "actor",
        config.rollout.num_actors,
        _resources(cluster.cpus_per_actor, cluster.gpus_per_actor, cluster.actor_resources),
        dict(cluster.actor_labels),
    )
    if not learners:
        return (actor,)
    learner = Share(
        "learner",
        cluster.num_learners,
        _resources(cluster.cpus_per_learner, cluster.gpus_per_learner, cluster.learner_resources),
        dict(cluster.learner_labels),
    )
    return learner, actor


def _resources(cpus: float, gpus: float, custom: Mapping[str, float]) -> dict[str, float]:
    return {"CPU": cpus, **({"GPU": gpus} if gpus else {}), **custom}


def totals(wanted: Sequence[Share]) -> dict[str, float]:
    """Sum of each resource over all bundles."""
    names = dict.fromkeys(name for share in wanted for name in share.resources)
    return {name: sum(share.total(name) for share in wanted) for name in names}


def never_fits(wanted: Sequence[Share], nodes: Sequence[Node]) -> str | None:
    """Why the nodes could not hold the bundles even if they were idle; None where that is not certain.

    Three conditions that every placement meets: each bundle finds a node, the nodes hold enough bundles of each role,
    and the sums suffice. `never_fits([Share("actor", 2, {"GPU": 4})], [Node({"GPU": 6}, {})])` names the second.
    """
    for share in wanted:
        able = [node for node in nodes if share.labels.items() <= node.labels.items()]
        room = sum(_copies(share, node) for node in able)
        if room < share.count:
            where = f" with labels {share.labels}" if share.labels else ""
            return (
                f"{share.count} bundles of {_shown(share.resources)} for {share.role}s are wanted and the "
                f"{len(able)} nodes{where} have room for {room}"
            )
    for name, amount in totals(wanted).items():
        there = sum(node.resources.get(name, 0.0) for node in nodes)
        if there < amount:
            return f"{amount:g} {name} are wanted together and the {len(nodes)} nodes have {there:g}"
    return None


def _copies(share: Share, node: Node) -> int:
    """Bundles of the share that an idle node holds. A node's amounts are multiples of 1e-4."""
    return min(int(node.resources.get(name, 0.0) / amount + 1e-9) for name, amount in share.resources.items())


class Placement:
    """A placed group: the options with which a process is started in its bundle."""

    def __init__(self, group: PlacementGroup, wanted: Sequence[Share]) -> None:
        self._group = group
        self._shares = {share.role: share for share in wanted}
        starts = [sum(share.count for share in wanted[:at]) for at in range(len(wanted))]
        self._first = {share.role: start for share, start in zip(wanted, starts, strict=True)}

    def options(self, role: Role, index: int) -> dict[str, Any]:
        """Ray actor options of process `index` of a role, 0-based; a restart gives the same index again."""
        share = self._shares[role]
        assert 0 <= index < share.count, f"{role} {index} has no bundle, there are {share.count}"
        strategy = PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=self._first[role] + index)
        return {
            "num_cpus": share.resources["CPU"],
            "num_gpus": share.resources.get("GPU", 0),
            "scheduling_strategy": strategy,
        }


@contextlib.contextmanager
def reserve(config: RunConfig, *, learners: bool = True) -> Iterator[Placement]:
    """Room for the whole run on the connected cluster; given back at the end, with whatever still runs in it.

    Raises:
        ConfigError: the cluster could not hold the run even if it were idle, and cannot grow.
        DeadlineError: there was no room within `cluster.placement_timeout_s`.
    """
    wanted = shares(config, learners=learners)
    problem = None if config.cluster.autoscaling else never_fits(wanted, _nodes())
    if problem is not None:
        raise ConfigError(
            f"cluster: {problem}, so the run would wait for ever; ask for less in cluster.* and rollout.num_actors, "
            "add nodes, or set cluster.autoscaling: true where the cluster can grow"
        )
    bundles = [dict(share.resources) for share in wanted for _ in range(share.count)]
    selectors = [dict(share.labels) for share in wanted for _ in range(share.count)]
    group = placement_group(bundles, strategy="PACK", bundle_label_selector=selectors if any(selectors) else None)
    try:
        _wait(group, wanted, config.cluster.placement_timeout_s)
        yield Placement(group, wanted)
    finally:
        remove_placement_group(group)


def _wait(group: PlacementGroup, wanted: Sequence[Share], timeout_s: float) -> None:
    started = time.monotonic()
    while not group.wait(min(LOG_EVERY_S, max(0.0, timeout_s - (time.monotonic() - started)))):
        waited = time.monotonic() - started
        state = f"wanted {_shown(totals(wanted))}, available {_shown(ray.available_resources())}"
        if waited >= timeout_s:
            raise DeadlineError(
                f"waited {waited:.0f} s for room on the cluster: {state}; free the resources, add nodes, or raise "
                f"cluster.placement_timeout_s (now {timeout_s:.0f})"
            )
        log.info("waiting for room on the cluster: %s; %.0f of %.0f s", state, waited, timeout_s)


def _nodes() -> list[Node]:
    return [Node(node["Resources"], node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]]


def _shown(resources: Mapping[str, float]) -> str:
    """Resources as a person counts them; Ray's own markers (`node:...`) and bytes are left out."""
    skipped = ("node:", "memory", "object_store_memory", "bundle_group", "accelerator_type:")
    shown = [f"{amount:g} {name}" for name, amount in sorted(resources.items()) if not name.startswith(skipped)]
    return ", ".join(name for name in shown if "_group_" not in name) or "nothing"
