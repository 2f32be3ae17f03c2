"""Bundles from the configuration, and what no cluster could hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.bundles import Node, Share, never_fits, shares, totals
from deploy.cluster import required_cpus
from protocol.config import load_config

ROOT = Path(__file__).resolve().parents[2]


def demo(*overrides: str) -> Any:
    return load_config(ROOT / "configs" / "demo.yaml", overrides=list(overrides))


def test_every_rank_and_every_actor_has_a_bundle_learners_first() -> None:
    config = demo(
        "cluster.num_learners=4",
        "cluster.gpus_per_learner=1",
        "rollout.num_actors=2",
        "cluster.gpus_per_actor=2",
        "custom.extra.rollout_matching.vllm.tensor_parallel_size=2",
        "cluster.cpus_per_actor=3",
        "cluster.cpus_per_learner=2",
    )
    learner, actor = shares(config)
    assert (learner.role, learner.count, learner.resources) == ("learner", 4, {"CPU": 2.0, "GPU": 1.0})
    assert (actor.role, actor.count, actor.resources) == ("actor", 2, {"CPU": 3.0, "GPU": 2.0})
    assert totals((learner, actor)) == {"CPU": 14.0, "GPU": 8.0}


def test_custom_resources_and_labels_select_nodes() -> None:
    learner, actor = shares(demo("cluster.learner_resources={trainer: 1}", "cluster.actor_labels={pool: rollout}"))
    assert learner.resources["trainer"] == 1
    assert actor.labels == {"pool": "rollout"}
    assert never_fits((actor,), [Node({"CPU": 8}, {"pool": "train"})]) is not None
    assert never_fits((actor,), [Node({"CPU": 8}, {"pool": "rollout"})]) is None


def test_an_evaluation_places_actors_only() -> None:
    (actor,) = shares(demo(), learners=False)
    assert actor.role == "actor"


def test_a_local_cluster_offers_what_the_run_places() -> None:
    assert required_cpus(demo()) == 2
    assert required_cpus(demo("cluster.cpus_per_actor=0.25", "cluster.cpus_per_learner=0.5")) == 1
    assert never_fits(shares(demo()), [Node({"CPU": required_cpus(demo())}, {})]) is None


GPUS = {"CPU": 64.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("wanted", "nodes", "said"),
    [
        ((Share("actor", 1, {"CPU": 1, "GPU": 1}),), [Node({"CPU": 8}, {})], "have room for 0"),
        ((Share("actor", 2, {"GPU": 4}),), [Node({"GPU": 6}, {})], "have room for 1"),
        ((Share("actor", 3, {"GPU": 6}),), [Node(GPUS, {}), Node(GPUS, {})], "have room for 2"),
        ((Share("learner", 5, {"GPU": 1}), Share("actor", 1, {"GPU": 4})), [Node(GPUS, {})], "9 GPU are wanted"),
        ((Share("learner", 1, {"trainer": 1}),), [Node(GPUS, {})], "1 trainer"),
        ((Share("actor", 1, {"CPU": 1}),), [], "0 nodes"),
    ],
)
def test_what_can_never_fit_is_said_with_both_numbers(wanted: tuple[Share, ...], nodes: list[Node], said: str) -> None:
    problem = never_fits(wanted, nodes)
    assert problem is not None
    assert said in problem


def test_nothing_is_refused_that_an_idle_cluster_could_hold() -> None:
    wanted = (Share("learner", 8, {"CPU": 4, "GPU": 1}), Share("actor", 2, {"CPU": 8, "GPU": 4}))
    assert never_fits(wanted, [Node(GPUS, {}), Node(GPUS, {})]) is None
    assert never_fits((Share("actor", 10, {"CPU": 0.1}),), [Node({"CPU": 1.0}, {})]) is None, "tenths add up"
