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
        "tuner": {"train_type": "lora"},
        "custom": {
            "train_jsonl": "t.jsonl",
            "val_jsonl": "v.jsonl",
            "val_sample_limit": 5,
            "emit_norm": "none",
            "json_format": "standard",
            "extra": {"rollout_matching": {"vllm": {"max_model_len": 4096}}},
        },
        "training": {"effective_batch_size": 8},
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
        ("custom.val_sample_with_replacement", True),
        ("training.eval_strategy", "epoch"),
        ("data.dataset_shuffle", False),
        ("template.truncation_strategy", "raise"),
    ],
)
def test_what_would_change_the_training_is_an_error(path: str, value: Any) -> None:
    (finding,) = check_pending(config(path, value))
    assert finding.is_error
    assert finding.where == path


@pytest.mark.parametrize(
    ("path", "value"),
    [("training.logging_steps", 5)],
)
def test_what_would_only_show_something_is_a_warning(path: str, value: Any) -> None:
    (finding,) = check_pending(config(path, value))
    assert not finding.is_error
    assert finding.where == path


def test_every_entry_says_what_to_write_instead() -> None:
    assert all(entry.instead for entry in CHANGES_TRAINING)
