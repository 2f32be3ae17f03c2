"""What a run places, as values: bundles of resources from the configuration. No Ray here.

The driver places these (`deploy.placement`), the manifests count them (`deploy.render_pods`), `plan` prints them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from protocol.config import RunConfig

Role = Literal["learner", "actor"]


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
                f"{share.count} bundles of {shown(share.resources)} for {share.role}s are wanted and the "
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


def shown(resources: Mapping[str, float]) -> str:
    """Resources as a person counts them; Ray's own markers (`node:...`) and bytes are left out."""
    skipped = ("node:", "memory", "object_store_memory", "bundle_group", "accelerator_type:")
    shown = [f"{amount:g} {name}" for name, amount in sorted(resources.items()) if not name.startswith(skipped)]
    return ", ".join(name for name in shown if "_group_" not in name) or "nothing"
