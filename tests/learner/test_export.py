"""Exports load in plain transformers and peft, in one file or in several."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import Qwen3VLForConditionalGeneration

from learner import export
from learner.export import check_names, compared_with, names_on_disk, read_merged, write_adapter
from learner.model import build_policy
from learner.settings import TunerSettings
from protocol.errors import ConfigError, ContractError
from tests.learner import tiny
from tests.learner.merging import DORA, TIED, TIED_BOTH, Unpartitioned, disturbed, exported


@pytest.mark.parametrize("tuner", [DORA, TIED, TIED_BOTH], ids=["dora", "tied", "tied by both names"])
def test_adapter_loads_in_plain_peft(checkpoint: Path, tmp_path: Path, tuner: TunerSettings) -> None:
    policy = disturbed(tiny.settings(checkpoint, tuner=tuner))
    write_adapter(tmp_path / "adapter", policy, Unpartitioned(), keep=True)
    base = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="sdpa")
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    ours = dict(policy.core.named_parameters())
    theirs = dict(loaded.get_base_model().named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in ours.items())


def test_export_is_a_checkpoint_of_its_own(checkpoint: Path, tmp_path: Path) -> None:
    policy = disturbed(tiny.settings(checkpoint))
    folder = exported(policy, checkpoint, tmp_path / "merged", torch.bfloat16)
    assert {path.name for path in checkpoint.iterdir()} == {path.name for path in folder.iterdir()}
    again = build_policy(tiny.settings(folder, torch_dtype="bfloat16"))
    for name, parameter in policy.named_parameters():
        assert torch.equal(dict(again.named_parameters())[name], parameter.to(torch.bfloat16)), name


@pytest.mark.parametrize("two", [True, False])
def test_an_export_of_several_shards_loads_like_one_of_a_single_file(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, two: bool
) -> None:
    policy = disturbed(tiny.settings(checkpoint))
    expected = load_file(exported(policy, checkpoint, tmp_path / "whole") / "model.safetensors")
    total = sum(tensor.nbytes for tensor in expected.values())
    limit = total * 3 // 4 if two else 40_000
    monkeypatch.setattr(export, "SHARD_BYTES", limit)
    folder = exported(policy, checkpoint, tmp_path / "sharded")

    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(shards) == 2 if two else len(shards) > 2
    assert shards == [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
    assert not list(folder.glob("*.part"))
    held = {shard: load_file(folder / shard) for shard in shards}
    assert all(len(inside) == 1 or sum(each.nbytes for each in inside.values()) <= limit for inside in held.values())
    index = json.loads((folder / export.INDEX).read_text())
    assert index["weight_map"] == {name: shard for shard, inside in held.items() for name in inside}
    assert index["metadata"]["total_size"] == total
    assert names_on_disk(folder) == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in read_merged(folder))
    again = dict(build_policy(tiny.settings(folder)).named_parameters())
    assert all(torch.equal(again[name], parameter) for name, parameter in policy.named_parameters())


def test_a_start_of_several_shards_leaves_no_index_in_an_export_of_one(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever loads the export would look for shards that are not there."""
    policy = build_policy(tiny.settings(checkpoint))
    with monkeypatch.context() as patched:
        patched.setattr(export, "SHARD_BYTES", 40_000)
        start = exported(policy, checkpoint, tmp_path / "start")
    folder = exported(policy, start, tmp_path / "merged")
    assert (start / export.INDEX).is_file()
    assert {path.name for path in folder.iterdir()} == {path.name for path in checkpoint.iterdir()}


def test_an_export_says_the_dtype_that_it_is_served_in(checkpoint: Path, tmp_path: Path) -> None:
    """Engines and transformers load what the configuration says, and the start said float32."""
    folder = exported(build_policy(tiny.settings(checkpoint)), checkpoint, tmp_path / "merged", torch.bfloat16)
    config = json.loads((folder / "config.json").read_text())
    sections = (config, config["text_config"], config["vision_config"])
    assert {section[key] for section in sections for key in ("dtype", "torch_dtype") if key in section} == {"bfloat16"}
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_checkpoint_with_other_names_is_refused_but_for_a_tied_copy(checkpoint: Path) -> None:
    names = names_on_disk(checkpoint)
    assert names is not None
    first = min(names)
    check_names(names, checkpoint, set())
    check_names(names - {first}, checkpoint, {first})
    with pytest.raises(ConfigError, match=r"disagree about 1 tensors .*only in the model: \['model.extra'\]"):
        check_names(names | {"model.extra"}, checkpoint, set())
    with pytest.raises(ConfigError, match=rf"disagree about 1 tensors \(only on disk: \['{first}'\]"):
        check_names(names - {first}, checkpoint, set())


def test_a_merge_is_compared_with_what_the_checkpoint_holds_under_its_name_and_dtype(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "SHARD_BYTES", 40_000)
    policy = build_policy(tiny.settings(checkpoint))
    with torch.no_grad():
        policy.head.weight[0, 0] = -0.0
    start = exported(policy, checkpoint, tmp_path / "start", torch.bfloat16)
    stored = {name: tensor + 0.0 for name, tensor in read_merged(start)}  # what adding no adapter makes of -0.0
    name = min(stored)
    extra = {"not.on.disk": torch.ones(1)}
    same = [(each, tensor, True) for each, tensor in (stored | extra).items()]
    in_another_dtype = (name, stored[name].float() + 1, True)
    assert len(list(compared_with(start, [in_another_dtype, *same]))) == len(stored) + 2

    off = stored[name].clone()
    off.view(torch.int16).flatten()[0] += 1  # to the next number
    given = iter([(name, off, True), *same])
    with pytest.raises(ContractError, match=rf"before any step 1 of {len(stored) + 1} merged .*first \['{name}'\]"):
        list(compared_with(start, given))
    assert next(given, None) is None, "it raises after the last: until then other ranks wait in collectives"
