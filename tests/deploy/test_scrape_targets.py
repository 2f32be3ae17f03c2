"""Prometheus finds the driver and, where asked for, Ray's nodes."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.scrape_targets import write_scrape_targets


def test_the_driver_and_living_nodes_are_listed_by_job(tmp_path: Path) -> None:
    nodes = [
        {"Alive": True, "NodeManagerAddress": "10.0.0.2", "MetricsExportPort": 8080},
        {"Alive": False, "NodeManagerAddress": "10.0.0.3", "MetricsExportPort": 8080},
        {"Alive": True, "NodeManagerAddress": "fd00::5", "MetricsExportPort": 8080},
    ]
    path = write_scrape_targets(tmp_path, "127.0.0.1:9095", nodes)
    assert json.loads(path.read_text()) == [
        {"targets": ["127.0.0.1:9095"], "labels": {"job": "rollmatch"}},
        {"targets": ["10.0.0.2:8080", "[fd00::5]:8080"], "labels": {"job": "ray"}},
    ]
    assert [each.name for each in tmp_path.iterdir()] == ["scrape_targets.json"]


def test_without_endpoint_and_nodes_nothing_is_listed(tmp_path: Path) -> None:
    assert json.loads(write_scrape_targets(tmp_path, None).read_text()) == []
