"""What a job gets, and what it would not find."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from deploy.submit import ROOT, RUNTIME_ENV, _client, entrypoint, portability
from protocol.config import RunConfig, load_config
from protocol.errors import ConfigError

DEMO = ROOT / "configs" / "demo.yaml"
EXCLUDES = yaml.safe_load(RUNTIME_ENV.read_text())["excludes"]


def demo(*overrides: str) -> RunConfig:
    return load_config(DEMO, overrides=list(overrides))


def test_a_job_joins_the_cluster_it_runs_in_unless_the_file_names_one() -> None:
    assert entrypoint(demo(), DEMO, None, ["training.max_steps=2"]).endswith(
        "training.max_steps=2 cluster.address=auto"
    )
    assert "cluster.address" not in entrypoint(demo("cluster.address=auto"), DEMO, None, [])


def test_paths_are_those_of_the_working_directory_and_words_are_quoted() -> None:
    command = entrypoint(demo(), DEMO, None, ["custom.user_prompt=List every object."])
    assert command.startswith("python -m deploy.cli train --config configs/demo.yaml 'custom.user_prompt=List every")


def test_an_address_without_a_scheme_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="--address: head:8265 is no URL"):
        _client("head:8265")


def test_a_run_file_outside_the_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="outside"):
        entrypoint(demo(), tmp_path / "my.yaml", None, [])


def test_relative_paths_that_are_not_uploaded_are_named() -> None:
    found = portability(demo(), EXCLUDES)
    data = ["custom.train_jsonl", "custom.val_jsonl", "training.output_dir"]
    assert [line.split(":")[0] for line in found] == data
    assert portability(demo("model.model=data/my/model"), EXCLUDES)[0].startswith("model.model: ")
    fine = demo("custom.train_jsonl=/d/t.jsonl", "custom.val_jsonl=/d/v.jsonl", "training.output_dir=/runs")
    assert portability(fine, EXCLUDES) == [], "the demo's model is part of the checkout"


def test_data_runs_and_environment_are_not_uploaded() -> None:
    assert {"/data", "/runs", "/.git", "/.venv"} <= set(EXCLUDES)
