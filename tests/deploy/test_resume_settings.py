"""What a resume must find as it was, and how a model is known again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest

from deploy.resume_settings import _model, check_settings, settings_of
from protocol.config import RunConfig
from protocol.errors import ConfigError
from tests.deploy.test_checkpoints import config

LORA = {"train_type": "lora", "target_modules": ("q_proj", "v_proj"), "modules_to_save": ("lm_head",)}


def tuned(folder: Path, **tuner: Any) -> RunConfig:
    base = config(folder)
    return base.model_copy(update={"tuner": base.tuner.model_copy(update=tuner)})


def remembered(run_config: RunConfig) -> dict[str, Any]:
    """What a checkpoint gives back."""
    found: dict[str, Any] = json.loads(json.dumps(settings_of(run_config, 100)))
    return found


def test_settings_are_the_same_after_their_way_through_a_checkpoint(tmp_path: Path) -> None:
    for run_config in (config(tmp_path), tuned(tmp_path, **LORA)):
        assert remembered(run_config) == settings_of(run_config, 100)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lora_rank": 4}, "tuner.lora_rank: is 4, and was 8"),
        ({"lora_alpha": 16}, "tuner.lora_alpha: is 16, and was 32"),
        ({"target_modules": ("q_proj",)}, r"tuner.target_modules: is \['q_proj'\], and was \['q_proj', 'v_proj'\]"),
        ({"target_regex": ".*q_proj"}, "tuner.target_regex: is .*q_proj, and was None"),
        ({"use_dora": True}, "tuner.use_dora: is True"),
        ({"modules_to_save": ()}, r"tuner.modules_to_save: is \[\]"),
        ({"freeze_vit": False}, "tuner.freeze_vit: is False"),
        ({"train_type": "full"}, "tuner.train_type: is full, and was lora"),
        ({"lora_dropout": 0.5}, None),
        ({"target_modules": ("v_proj", "q_proj")}, None),
    ],
)
def test_another_adapter_is_refused_by_its_setting(tmp_path: Path, changes: dict[str, Any], words: str | None) -> None:
    then, now = remembered(tuned(tmp_path, **LORA)), settings_of(tuned(tmp_path, **(LORA | changes)), 100)
    if words is None:
        return check_settings(tmp_path, then, now)
    with pytest.raises(ConfigError, match=f"^{words}"):
        check_settings(tmp_path, then, now)


def test_without_an_adapter_its_settings_may_change(tmp_path: Path) -> None:
    check_settings(tmp_path, remembered(config(tmp_path)), settings_of(tuned(tmp_path, lora_rank=4), 100))


def test_a_setting_that_an_older_checkpoint_does_not_remember_is_not_compared(tmp_path: Path) -> None:
    then = {"model.model": "m", "training.seed": config(tmp_path).training.seed}
    check_settings(tmp_path, then, settings_of(tuned(tmp_path, **LORA), 100))


def write_model(folder: Path, seed: int, shards: int = 1) -> Path:
    """A config.json and weight files of random bytes."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    names = [f"model-{number}.safetensors" for number in range(shards)] if shards > 1 else ["model.safetensors"]
    for number, name in enumerate(names):
        (folder / name).write_bytes(np.random.default_rng([seed, number]).bytes(1_000_003))
    if shards > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(enumerate(names))}))
    return folder


def same(then: Path | str, now: Path | str) -> bool:
    try:
        check_settings(Path("c"), {"model.model": _model(str(then))}, {"model.model": _model(str(now))})
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("shards", [1, 3])
def test_a_model_is_known_by_its_files_and_not_by_the_name_of_its_folder(tmp_path: Path, shards: int) -> None:
    one = write_model(tmp_path / "sft_a" / "checkpoint-200" / "merged", 1, shards)
    other = write_model(tmp_path / "sft_b" / "checkpoint-200" / "merged", 2, shards)
    moved = shutil.copytree(one, tmp_path / "elsewhere")
    assert same(one, moved)
    assert not same(one, other)
    with pytest.raises(ConfigError, match=r"^model\.model: is checkpoint-200/merged, digest \w{16}, and was check"):
        check_settings(tmp_path, {"model.model": _model(str(one))}, {"model.model": _model(str(other))})
    (moved / "config.json").write_text('{"rope": 2}')
    assert not same(one, moved)


def test_one_changed_end_of_a_weight_file_makes_another_model(tmp_path: Path) -> None:
    one = write_model(tmp_path / "a" / "hf", 1)
    other = shutil.copytree(one, tmp_path / "b" / "hf")
    with (other / "model.safetensors").open("rb+") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    assert not same(one, other)


def test_a_weight_file_of_another_size_makes_another_model_whatever_is_in_it(tmp_path: Path) -> None:
    models = [write_model(tmp_path / f"{size}" / "hf", 1) for size in (3, 50_000, 60_000)]
    for folder in models:
        (folder / "model.safetensors").write_bytes(bytes(int(folder.parent.name)))
    assert [[same(then, now) for now in models] for then in models] == np.eye(3, dtype=bool).tolist()


def test_a_name_on_a_hub_and_its_folder_in_the_cache_are_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = tmp_path / "models--owner--hf"
    snapshot = write_model(repository / "snapshots" / ("0" * 40), 1)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert same("owner/hf", snapshot)
    (snapshot / "model.safetensors").unlink()  # a download that was cut short
    assert _model("owner/hf") == "hf"


def test_a_model_whose_files_are_not_here_is_known_by_its_name(tmp_path: Path) -> None:
    assert [_model(f"{root}/Qwen3-VL-8B") for root in ("/models", "/mnt/models")] == ["Qwen3-VL-8B"] * 2
    assert _model(".") == Path.cwd().name
    assert _model("runs/a/checkpoint-5/merged") != _model("runs/a/checkpoint-9/merged")
    here = write_model(tmp_path / "m", 1)
    assert same("m", here), "an older checkpoint remembers no digest"
    assert same(here, "m")
    assert not same("other", here)
