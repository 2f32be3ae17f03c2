"""Prompts: what they must say, and how a run file replaces them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from protocol.config import RunConfig, config_from_mapping
from protocol.errors import ConfigError
from protocol.prompts import default_prompts, resolve_prompts
from tests.protocol.golden.payloads import extract_truths


def run(**custom: Any) -> RunConfig:
    return config_from_mapping(
        {
            "model": {"model": "m"},
            "custom": {
                "train_jsonl": "t.jsonl",
                "emit_norm": "none",
                "json_format": "standard",
                "extra": {"rollout_matching": {"rollout_backend": "hf"}},
            }
            | custom,
        }
    )


@pytest.mark.parametrize("ordering", ["sorted", "random"])
def test_the_examples_are_valid_objects(ordering: Any) -> None:
    system, _ = default_prompts(ordering)
    examples = [json.loads(text) for text in re.findall(r'\{"desc".*?\]\}', system)]
    payload = {f"object_{number}": example for number, example in enumerate(examples, start=1)}
    found = [(truth.shape.geometry, len(truth.shape.bins)) for truth in extract_truths(payload)]
    assert found == [("bbox_2d", 4), ("poly", 8)]
    assert "'" not in re.sub(r"\w'\w", "", system)


def test_the_orderings_differ_in_what_they_ask_for() -> None:
    assert "top to bottom" in "".join(default_prompts("sorted"))
    assert "top to bottom" not in "".join(default_prompts("random"))


def test_the_built_in_prompts_follow_the_ordering() -> None:
    assert resolve_prompts(run()) == default_prompts("sorted")
    assert resolve_prompts(run(object_ordering="random")) == default_prompts("random")


def test_a_run_replaces_one_prompt_or_reads_it_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "user.txt").write_text("Find cats.\n", encoding="utf-8")
    config = run(system_prompt="Be brief.", user_prompt=str(tmp_path / "user.txt"))
    assert resolve_prompts(config) == ("Be brief.", "Find cats.")


def test_a_prompt_file_that_is_missing_or_blank_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"custom\.user_prompt: .* is blank"):
        resolve_prompts(run(user_prompt=str(tmp_path / "blank.txt")))
    with pytest.raises(ConfigError, match=r"custom\.system_prompt: .* cannot be read"):
        resolve_prompts(run(system_prompt=str(tmp_path / "gone.txt")))
