"""`scrape_targets.json` in the run's folder: where Prometheus finds the run, in the form of its `file_sd_configs`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deploy.endpoint import host_port
from protocol.whole_file import write_whole

FILE = "scrape_targets.json"


def write_scrape_targets(run_dir: Path, driver: str | None, nodes: Iterable[Mapping[str, Any]] = ()) -> Path:
    """The driver's endpoint as job `rollmatch`, the metrics ports of Ray's living `nodes` as job `ray`.

    Args:
        driver: `host:port`; None without an endpoint.
        nodes: what `ray.nodes()` says.
    """
    ray = [host_port(node["NodeManagerAddress"], node["MetricsExportPort"]) for node in nodes if node["Alive"]]
    jobs = {"rollmatch": [driver] if driver else [], "ray": sorted(ray)}
    groups = [{"targets": targets, "labels": {"job": job}} for job, targets in jobs.items() if targets]
    path = run_dir / FILE
    write_whole(path, json.dumps(groups, indent=1) + "\n")
    return path
