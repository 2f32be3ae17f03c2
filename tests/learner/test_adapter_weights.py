"""The published adapter is the one that peft would write (SPEC A18)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from learner.adapter_weights import AdapterWeights
from learner.export import write_adapter
from learner.merge import Rounding
from learner.publisher import Publisher
from learner.settings import TunerSettings
from protocol.weights import WeightsManifest
from tests.learner import tiny
from tests.learner.merging import Unpartitioned, disturbed

LORA = TunerSettings(kind="lora", rank=4, alpha=8.0, use_rslora=True)


def test_names_values_and_description_are_those_of_peft(checkpoint: Path, tmp_path: Path) -> None:
    policy = disturbed(tiny.settings(checkpoint, tuner=LORA))
    write_adapter(tmp_path / "adapter", policy, Unpartitioned(), keep=True)
    weights = AdapterWeights(policy, torch.float32)

    on_disk = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    published = {name: value for name, value, _ in weights.tensors(Unpartitioned(), Rounding(), only_changing=True)}
    assert published.keys() == on_disk.keys()
    assert all(torch.equal(published[name], value) for name, value in on_disk.items())
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    described = json.loads(weights.description)
    for key in ("r", "lora_alpha", "use_rslora", "target_modules", "peft_type"):
        assert described[key] == written[key], key
    assert (described["r"], described["use_rslora"]) == (4, True)


def test_every_publish_holds_the_whole_adapter_and_counts_what_changed(checkpoint: Path) -> None:
    policy = disturbed(tiny.settings(checkpoint, tuner=replace(LORA, use_rslora=False)))
    publisher = Publisher(AdapterWeights(policy, torch.bfloat16), Unpartitioned(), 10_000, is_first=True)
    publisher.remember()
    *_, first = publisher.publish(0, True)
    with torch.no_grad():
        next(p for name, p in policy.named_parameters() if "lora_B" in name).add_(1.0)
    *_, second = publisher.publish(1, False)

    assert isinstance(first, WeightsManifest)
    assert isinstance(second, WeightsManifest)
    assert (first.changed_tensors, second.changed_tensors) == (0, 1)
    assert first.tensors == second.tensors, "a restarted engine needs all of it"
    assert {entry.dtype for entry in second.tensors} == {"bfloat16"}
    assert second.adapter is not None
    assert json.loads(second.adapter)["peft_type"] == "LORA"
