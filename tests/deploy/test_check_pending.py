"""What a run file may ask for and this version does not do: said by name, never passed over."""

from __future__ import annotations

from typing import Any

import pytest

from deploy.check_pending import CHANGES_TRAINING, check_pending
from protocol.config import RunConfig, config_from_mapping


def config(path: str | None = None, value: Any = None) -> RunConfig:
    """A run file with one more setting."""
    values: dict[str, Any] = {
        "model": {"model": "m"},
        "cluster": {"gpus_per_learner": 1, "gpus_per_actor": 1},
        "tuner": {"train_type": "lora"},
        "custom": {
            "train_jsonl": "t.jsonl",
            "val_jsonl": "v.jsonl",
            "val_sample_limit": 5,
            "emit_norm": "none",
            "json_format": "standard",
            "extra": {"rollout_matching": {"vllm": {"max_model_len": 4096}}},
        },
        "training": {"effective_batch_size": 8, "packing": True},
        "rollout": {"max_staleness": 1},
    }
    if path is not None:
        *sections, name = path.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        target[name] = value
    return config_from_mapping(values, source="test")


def test_the_defaults_ask_for_nothing_that_is_missing() -> None:
    assert list(check_pending(config())) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("training.packing_carry", True),
    ],
)
def test_what_would_change_the_training_is_an_error(path: str, value: Any) -> None:
    (finding,) = check_pending(config(path, value))
    assert finding.is_error
    assert finding.where == path


def test_every_entry_says_what_to_write_instead() -> None:
    assert all(entry.instead for entry in CHANGES_TRAINING)
