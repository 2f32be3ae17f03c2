"""Each process has a bundle of its own, and room that was asked for is given back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy import placement
from deploy.bundles import Node
from deploy.placement import reserve
from protocol.config import RunConfig
from protocol.errors import ConfigError, DeadlineError
from tests.deploy.test_checkpoints import config


def asking(folder: Path, **cluster: Any) -> RunConfig:
    base = config(folder)
    rollout = base.rollout.model_copy(update={"num_actors": 3})
    return base.model_copy(
        update={"rollout": rollout, "cluster": base.cluster.model_copy(update={"num_learners": 2} | cluster)}
    )


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """A cluster of one node in place of Ray; what was asked of it, and given back to it, in order."""

    def of(cpus: float, *, has_room: bool = True) -> list[Any]:
        told: list[Any] = []
        group = SimpleNamespace(wait=lambda timeout_s: has_room)
        monkeypatch.setattr(placement, "_nodes", lambda: [Node({"CPU": cpus, "memory": 1e12}, {})])
        monkeypatch.setattr(placement, "placement_group", lambda bundles, **_: told.append(len(bundles)) or group)
        monkeypatch.setattr(placement, "remove_placement_group", lambda given: told.append(given is group))
        monkeypatch.setattr(placement.ray, "available_resources", dict)
        return told

    return of


def test_every_rank_and_actor_has_a_bundle_of_its_own_and_comes_back_into_it(
    cluster: Callable[..., list[Any]], tmp_path: Path
) -> None:
    told = cluster(cpus=1000)
    everyone = [("learner", 0), ("learner", 1), ("actor", 0), ("actor", 1), ("actor", 2)]
    with reserve(asking(tmp_path, cpus_per_learner=3)) as room:
        for _ in range(2):
            options = [room.options(role, index) for role, index in everyone]
            bundles = [each["scheduling_strategy"].placement_group_bundle_index for each in options]
            assert sorted(bundles) == list(range(5))
            assert [each["num_cpus"] for each in options[:2]] == [3, 3]
        assert told == [5]
    assert told == [5, True]
    with reserve(asking(tmp_path), learners=False) as room:
        assert told[2:] == [3]


def test_room_that_does_not_come_is_not_awaited_for_ever_and_is_given_back(
    cluster: Callable[..., list[Any]], tmp_path: Path
) -> None:
    told = cluster(cpus=1000, has_room=False)
    with (
        pytest.raises(DeadlineError, match=r"for room on the cluster: wanted .*placement_timeout_s \(now 0\)"),
        reserve(asking(tmp_path, placement_timeout_s=0.0)),
    ):
        pytest.fail("there is no room")
    assert told == [5, True]


def test_a_run_that_can_never_fit_is_refused_at_once_unless_the_cluster_can_grow(
    cluster: Callable[..., list[Any]], tmp_path: Path
) -> None:
    told = cluster(cpus=0.5)
    with pytest.raises(ConfigError, match=r"^cluster: .*would wait for ever"), reserve(asking(tmp_path)):
        pytest.fail("there is no room")
    assert not told
    with reserve(asking(tmp_path, autoscaling=True)):
        assert told == [5]
