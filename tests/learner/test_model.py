"""What is trained, at which rate, and what a training forward does that an inference forward does not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from learner.collate import Vision, collate_packed
from learner.losses import LossScales
from learner.model import build_policy, parameter_groups, part_of, trainable
from learner.settings import TunerSettings
from protocol.errors import ConfigError
from protocol.segments import Segment
from tests.learner import tiny


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("core.model.language_model.layers.0.mlp.up_proj.weight", "language"),
        ("lm_head", "language"),
        ("model.visual.merger.linear_fc1", "aligner"),
        ("core.model.visual.deepstack_merger_list.1.norm.weight", "aligner"),
        ("model.visual.patch_embed.proj.bias", "vision"),
    ],
)
def test_every_name_belongs_to_one_part(name: str, part: str) -> None:
    assert part_of(name) == part


def test_each_part_has_its_rate_and_vectors_are_not_decayed(checkpoint: Path) -> None:
    optimizer = tiny.optimizer(learning_rate=1e-4, aligner_lr=5e-5, vit_lr=1e-6, weight_decay=0.1)
    settings = tiny.settings(checkpoint, optimizer=optimizer)
    policy = build_policy(settings)
    groups = {group["name"]: group for group in parameter_groups(policy, settings)}
    assert {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()} == {
        "aligner": (5e-5, 0.1),
        "aligner/no_decay": (5e-5, 0.0),
        "language": (1e-4, 0.1),
        "language/no_decay": (1e-4, 0.0),
        "vision": (1e-6, 0.1),
        "vision/no_decay": (1e-6, 0.0),
    }
    assert sum(len(group["params"]) for group in groups.values()) == len(list(trainable(policy)))


def test_frozen_parts_are_not_trained_with_or_without_adapters(checkpoint: Path) -> None:
    for kind in ("full", "lora"):
        tuner = TunerSettings(kind=kind, freeze_llm=True, freeze_aligner=False)  # type: ignore[arg-type]
        policy = build_policy(tiny.settings(checkpoint, tuner=tuner))
        assert {part_of(name) for name, _ in trainable(policy)} == {"aligner"}
        assert all(("lora_" in name) == (kind == "lora") for name, _ in trainable(policy))


def test_targets_may_be_suffixes_or_a_regular_expression(checkpoint: Path) -> None:
    def adapted(targets: tuple[str, ...] | str) -> set[str]:
        policy = build_policy(tiny.settings(checkpoint, tuner=TunerSettings(kind="lora", target_modules=targets)))
        return {name.split(".lora_")[0] for name, _ in trainable(policy)}

    assert {name.rsplit(".", 1)[1] for name in adapted(("q_proj", "down_proj"))} == {"q_proj", "down_proj"}
    assert adapted(r".*layers\.1\.mlp\.up_proj") == {"core.model.language_model.layers.1.mlp.up_proj"}
    with pytest.raises(ConfigError, match="selects no linear layer"):
        adapted(("nothing",))


def test_adapters_in_the_head_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="selects lm_head"):
        build_policy(tiny.settings(checkpoint, tuner=TunerSettings(kind="lora", target_modules=("lm_head",))))


@pytest.mark.parametrize(("recompute", "calls"), [(False, 1), (True, 2)])
def test_with_gradient_checkpointing_every_layer_is_computed_again_in_the_backward(
    checkpoint: Path, segments: list[Segment], vision: list[Vision], recompute: bool, calls: int
) -> None:
    policy = build_policy(tiny.settings(checkpoint, gradient_checkpointing=recompute))
    layers = [*policy.core.model.language_model.layers, *policy.core.model.visual.blocks]
    counts = dict.fromkeys(range(len(layers)), 0)

    def count(number: int) -> None:
        counts[number] += 1

    for number, layer in enumerate(layers):
        layer.mlp.register_forward_pre_hook(lambda *_, at=number: count(at))
    policy(collate_packed(segments, vision, policy.rope_index), LossScales(1.0, 1.0)).loss.backward()
    assert set(counts.values()) == {calls}


def test_adapters_drop_what_they_were_told_to(checkpoint: Path, segments: list[Segment], vision: list[Vision]) -> None:
    for dropout, differs in ((0.0, False), (0.5, True)):
        policy = build_policy(tiny.settings(checkpoint, tuner=TunerSettings(kind="lora", dropout=dropout)))
        with torch.no_grad():
            for name, parameter in trainable(policy):
                if "lora_B" in name:
                    parameter.normal_()
            batch = collate_packed(segments, vision, policy.rope_index)
            assert torch.equal(policy.hidden(batch), policy.hidden(batch)) is not differs
