"""Both ends of the weight sync's benchmark: a process that holds weights as a learner does, and one that receives them.

The weights are synthetic: the tensors of Qwen3-VL-4B in their shapes, scaled to a size.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import ray
import torch
from torch import Tensor

from protocol.weights import Bucket, WeightsManifest

BUCKET_BYTES = 256 * 2**20
"""The default of `sync.bucket_bytes`."""
MEMCPY_BYTES = 512 * 2**20
"""Size of memcpy's warm destination; larger than every cache."""


def shapes_4b() -> dict[str, tuple[int, ...]]:
    """Names and shapes of Qwen3-VL-4B: 36 text layers, 24 vision blocks, four mergers; 8.9 GB in bf16."""
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens.weight": (152670, 2560), "norm.weight": (2560,)}
    text = {"q_proj": (4096, 2560), "k_proj": (1024, 2560), "v_proj": (1024, 2560), "o_proj": (2560, 4096)}
    text |= {"gate_proj": (9728, 2560), "up_proj": (9728, 2560), "down_proj": (2560, 9728)}
    norms = {"q_norm": (128,), "k_norm": (128,), "input_layernorm": (2560,), "post_attention_layernorm": (2560,)}
    for layer in range(36):
        shapes |= {f"layers.{layer}.{name}.weight": shape for name, shape in {**text, **norms}.items()}
    block = {"attn.qkv": (3072, 1024), "attn.proj": (1024, 1024), "linear_fc1": (4096, 1024)}
    block |= {"linear_fc2": (1024, 4096), "norm1": (1024,), "norm2": (1024,)}
    merger = {"norm": (4096,), "linear_fc1": (4096, 4096), "linear_fc2": (2560, 4096)}
    modules = {f"visual.blocks.{i}.{name}": shape for i in range(24) for name, shape in block.items()}
    modules |= {f"visual.mergers.{i}.{name}": shape for i in range(4) for name, shape in merger.items()}
    modules["visual.patch_embed.proj"] = (1024, 3, 2, 16, 16)
    for name, shape in modules.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return shapes | {"visual.pos_embed.weight": (2304, 1024)}


def synthetic(num_bytes: int) -> dict[str, Tensor]:
    """The tensors, their first dimension scaled so that they are about `num_bytes` together."""
    shapes = shapes_4b()
    scale = num_bytes / sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    scaled = {name: (max(1, round(shape[0] * scale)), *shape[1:]) for name, shape in shapes.items()}
    return {name: torch.empty(shape, dtype=torch.bfloat16).uniform_(-1, 1) for name, shape in scaled.items()}


class SyntheticWeights:
    """In the place of `learner.merge.MergedWeights`: weights that are merged and rounded already."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        self._tensors = tensors

    def tensors(self, *_: object, **__: object) -> Iterator[tuple[str, Tensor, bool]]:
        for name, tensor in self._tensors.items():
            yield name, tensor, True


class Learner:
    """The process that holds the weights."""

    def __init__(self, num_bytes: int) -> None:
        from learner.publisher import Publisher

        torch.set_num_threads(1)
        self._tensors = synthetic(num_bytes)
        self._publisher = Publisher(SyntheticWeights(self._tensors), None, BUCKET_BYTES, is_first=True)  # type: ignore[arg-type]
        self._warm = torch.zeros(min(num_bytes, MEMCPY_BYTES), dtype=torch.uint8)

    def describe(self) -> tuple[int, int, dict[str, tuple[int, ...]]]:
        """Number of tensors, bytes, shapes."""
        shapes = {name: tuple(tensor.shape) for name, tensor in self._tensors.items()}
        return len(shapes), sum(tensor.nbytes for tensor in self._tensors.values()), shapes

    def publish(self, version: int) -> Iterator[Bucket | WeightsManifest]:
        yield from self._publisher.publish(version, True)

    def memcpy(self) -> float:
        """Seconds to copy every tensor once, on one thread."""
        started, fill = time.perf_counter(), 0
        for tensor in self._tensors.values():
            flat = tensor.flatten().view(torch.uint8)
            for part in flat.split(len(self._warm)):
                fill = fill if fill + len(part) <= len(self._warm) else 0
                self._warm[fill : fill + len(part)].copy_(part)
                fill += len(part)
        return time.perf_counter() - started

    def send_each(self, receivers: Sequence[Any], as_torch: bool) -> None:
        """One call per tensor and receiver."""
        for name, tensor in self._tensors.items():
            value = tensor if as_torch else tensor.flatten().view(torch.uint8).numpy()
            ray.get([receiver.take_one.remote(name, value, tuple(tensor.shape)) for receiver in receivers])

    def save(self, path: str) -> None:
        from safetensors.torch import save_file

        save_file(self._tensors, path)


class Receiver:
    """An engine's process without the engine: production's own fetch, check and views."""

    def __init__(self, shapes: dict[str, tuple[int, ...]]) -> None:
        torch.set_num_threads(1)
        self._views: dict[str, Tensor] = {}
        self._parameters = {shape: torch.zeros(shape, dtype=torch.bfloat16) for shape in set(shapes.values())}

    def load(self, manifest: WeightsManifest, refs: Sequence[Any]) -> tuple[float, float]:
        """Seconds of the fetch and of check and views."""
        from actors.weight_buckets import tensor_views, verify_buckets

        started = time.perf_counter()
        buckets = ray.get(list(refs))
        fetched = time.perf_counter()
        verify_buckets(manifest, buckets)
        self._views = dict(tensor_views(manifest, buckets))
        return fetched - started, time.perf_counter() - fetched

    def take_one(self, name: str, value: Any, shape: tuple[int, ...]) -> None:
        tensor = value if isinstance(value, Tensor) else torch.frombuffer(value.data, dtype=torch.bfloat16)
        self._views[name] = tensor.view(shape)

    def load_file(self, path: str) -> None:
        from safetensors.torch import load_file

        self._views = load_file(path)

    def copy(self) -> None:
        """What a model's loader does next."""
        for view in self._views.values():
            self._parameters[tuple(view.shape)].copy_(view)

    def forget(self) -> None:
        self._views = {}
