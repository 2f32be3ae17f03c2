"""Frozen weights away and back; that they free a device is shown on a GPU (`tests/integration/test_gpu.py`)."""

from __future__ import annotations

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
