"""Room on a real cluster: refused at once, waited for with a deadline, given back."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from deploy.cluster import ray_session
from deploy.placement import reserve
from protocol.config import RunConfig, load_config
from protocol.errors import ConfigError, DeadlineError

pytestmark = pytest.mark.integration
DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"


def test_a_run_gets_all_of_its_room_or_says_why_not() -> None:
    def demo(*overrides: str) -> RunConfig:
        return load_config(DEMO, overrides=[*overrides, "cluster.object_store_bytes=90000000"])

    config = demo()
    with ray_session(config):
        with pytest.raises(ConfigError, match="for ever"), reserve(demo("cluster.gpus_per_actor=1")):
            pass
        with reserve(config) as placement:
            assert ray.available_resources().get("CPU", 0) == 0
            where = ray.remote(lambda: ray.get_runtime_context().get_placement_group_id())
            options = placement.options("actor", 0)
            assert ray.get(where.options(**options).remote(), timeout=60)
            impatient = demo("cluster.autoscaling=true", "cluster.placement_timeout_s=1")
            with pytest.raises(DeadlineError, match=r"wanted 2 CPU, available"):
                reserve(impatient).__enter__()
        with reserve(config):
            pass  # the first group gave its room back
