"""Where learner ranks and rollout actors live: bundles from the configuration, one Ray placement group for them all.

One group holds every bundle, so a run gets all of its place or none: two jobs on one cluster cannot each hold half and
wait for the other. An actor or a rank that is restarted comes back into its own bundle.

| who waits | for what | who ends the wait | deadline |
|---|---|---|---|
| `reserve` | room for every bundle | the cluster: nodes join, other jobs end | `cluster.placement_timeout_s` |

What is placed is computed in `deploy.bundles`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from deploy.bundles import Node, Role, Share, never_fits, shares, shown, totals
from protocol.config import RunConfig
from protocol.errors import ConfigError, DeadlineError

log = logging.getLogger("rollmatch")

LOG_EVERY_S = 30.0


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
        state = f"wanted {shown(totals(wanted))}, available {shown(ray.available_resources())}"
        if waited >= timeout_s:
            raise DeadlineError(
                f"waited {waited:.0f} s for room on the cluster: {state}; free the resources, add nodes, or raise "
                f"cluster.placement_timeout_s (now {timeout_s:.0f})"
            )
        log.info("waiting for room on the cluster: %s; %.0f of %.0f s", state, waited, timeout_s)


def _nodes() -> list[Node]:
    return [Node(node["Resources"], node.get("Labels") or {}) for node in ray.nodes() if node["Alive"]]
