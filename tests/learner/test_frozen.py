"""Frozen weights away and back; that they free a device is shown on a GPU (`tests/integration/test_gpu.py`)."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from learner.frozen import FrozenWeights


def test_only_frozen_parameters_are_moved_and_all_values_stay() -> None:
    layer = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    layer[0].requires_grad_(False)
    before = {name: (value.data_ptr(), value.clone()) for name, value in layer.named_parameters()}
    frozen = FrozenWeights(layer.parameters(), torch.device("cpu"))
    for _ in range(2):
        frozen.leave()
        with torch.no_grad():
            layer[1].weight += 1  # what is trained goes on meanwhile
        frozen.enter()
    for name, value in layer.named_parameters():
        address, old = before[name]
        assert torch.equal(value, old + 2 * (name == "1.weight"))
        assert name.startswith("0.") or value.data_ptr() == address


def test_frozen_parameters_alone_show_their_one_copy_while_they_are_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("learner.frozen.to_host", torch.clone)  # as from a GPU
    layer = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    layer[0].requires_grad_(False)
    frozen = FrozenWeights(layer.parameters(), torch.device("cpu"))
    at = [[value.data_ptr() for value in layer.parameters()]]
    for _ in range(2):
        frozen.leave()
        at.append([value.data_ptr() for value in layer.parameters()])
        frozen.enter()
    before, first, second = at
    assert first == second, "later departures only forget the device's"
    assert [here == there for here, there in zip(before, first, strict=True)] == [False, False, True, True]
