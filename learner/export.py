"""Folders that others load: the merged model for transformers and vLLM, the adapter for peft."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from learner.merge import ParameterSource
from learner.model import Policy, trainable
from protocol.errors import ConfigError, ContractError

SHARD_BYTES = 4 * 2**30
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
WEIGHT_INDEX = "*.index.json"
COPIED = frozenset({".json", ".jinja", ".txt", ".model", ".tiktoken"})
"""Suffixes of configuration, tokenizer, processor and template files; logs and model cards describe the start only."""


def write_merged(folder: Path, tensors: Iterable[tuple[str, Tensor]], start: Path) -> None:
    """Shards, configuration with the serving dtype, tokenizer, processor and template.

    Args:
        folder: existing, empty.
        tensors: merged, under their names on disk, in the serving dtype.
        start: the checkpoint that was trained; tokenizer, processor and template files are copied from it.
    """
    _copy_small_files(start, folder)
    dtype = _write_shards(folder, tensors)
    config = json.loads((start / "config.json").read_text(encoding="utf-8"))
    for section in (config, config.get("text_config", {}), config.get("vision_config", {})):
        for key in ("dtype", "torch_dtype"):
            if key in section:
                section[key] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _copy_small_files(start: Path, folder: Path) -> None:
    indices = set(start.glob(WEIGHT_INDEX))
    for path in start.iterdir():
        if path.suffix in COPIED and path not in indices:
            shutil.copyfile(path, folder / path.name)


def _write_shards(folder: Path, tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Writes shards of at most SHARD_BYTES and their index; returns the dtype's short name."""
    shards: list[list[str]] = []
    pending: dict[str, Tensor] = {}
    total, dtype = 0, "float32"
    for name, tensor in tensors:
        if pending and sum(t.nbytes for t in pending.values()) + tensor.nbytes > SHARD_BYTES:
            shards.append(_save(folder, len(shards), pending))
            pending = {}
        pending[name] = tensor
        total, dtype = total + tensor.nbytes, str(tensor.dtype).removeprefix("torch.")
    shards.append(_save(folder, len(shards), pending))
    names = [f"model-{number + 1:05d}-of-{len(shards):05d}.safetensors" for number in range(len(shards))]
    if len(shards) == 1:
        names = [SINGLE]
    for number, name in enumerate(names):
        (folder / _temporary(number)).rename(folder / name)
    if len(shards) > 1:
        where = {tensor: name for name, inside in zip(names, shards, strict=True) for tensor in inside}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return dtype


def _save(folder: Path, number: int, tensors: dict[str, Tensor]) -> list[str]:
    save_file(tensors, folder / _temporary(number), metadata={"format": "pt"})
    return list(tensors)


def _temporary(number: int) -> str:
    return f"shard-{number}.part"


def write_adapter(folder: Path, policy: Policy, source: ParameterSource, *, keep: bool) -> None:
    """Adapter and modules_to_save as `PeftModel.from_pretrained` reads them, in fp32. Collective."""
    values: dict[str, Tensor] = {}
    names: dict[int, list[str]] = {}  # a tied parameter has two, and peft asks for both
    for name, parameter in policy.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name.replace("core.", "base_model.model.", 1))
    for _, parameter in trainable(policy):
        with source.gathered([parameter]):
            value = source.full_precision(parameter)
            if keep:
                values |= {name: value.to(torch.float32).cpu().clone() for name in names[id(parameter)]}
    if keep:
        assert policy.adapter is not None
        policy.adapter.save_pretrained(folder, state_dict=values)


def start_folder(model: str) -> Path:
    """The folder of the start checkpoint; a hub's name is looked up in the local cache, or downloaded."""
    if Path(model).is_dir():
        return Path(model)
    try:
        return Path(snapshot_download(model))
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise ConfigError(
            f"model.model: {model!r} is neither a folder nor a model that the hub or its cache has ({error}); "
            "correct the path"
        ) from error


def names_on_disk(start: Path) -> set[str] | None:
    """Tensor names of a safetensors checkpoint; None where it has another format."""
    return set(_places(start)) or None


def _places(start: Path) -> dict[str, str]:
    """The file of each tensor of a safetensors checkpoint, as transformers picks it; empty for another format."""
    if (start / SINGLE).is_file():
        with safe_open(start / SINGLE, "pt") as file:
            return dict.fromkeys(file.keys(), SINGLE)
    if not (start / INDEX).is_file():
        return {}
    places: dict[str, str] = json.loads((start / INDEX).read_text(encoding="utf-8"))["weight_map"]
    return places


def compared_with(start: Path, tensors: Iterable[tuple[str, Tensor, bool]]) -> Iterator[tuple[str, Tensor, bool]]:
    """Hands `tensors` on, and after the last of them finds those that are not what the start checkpoint holds.

    One that is stored in another dtype, or not at all, has nothing to be compared with.

    Raises:
        ContractError: what nobody has trained differs from its file.
    """
    places, compared, different = _places(start), 0, []
    with ExitStack() as opened:
        files = {file: opened.enter_context(safe_open(start / file, "pt")) for file in set(places.values())}
        for name, tensor, can_change in tensors:
            stored = files[places[name]].get_tensor(name) if name in places else None
            if stored is not None and stored.dtype == tensor.dtype:
                compared += 1
                if not _is_same(tensor, stored):
                    different.append(name)
            yield name, tensor, can_change
    if different:
        raise ContractError(
            f"before any step {len(different)} of {compared} merged tensors differ from those of {start} (first "
            f"{different[:3]}), so engines would serve what nobody trained; the learner owes the checkpoint itself: "
            "report it, and train without tuner.use_dora or with another tuner.train_type"
        )


def _is_same(merged: Tensor, stored: Tensor) -> bool:
    """The tolerance is for float32, whose norms may be summed in another order; 16 bits have no two values so near."""
    return torch.equal(merged, stored) or bool(torch.allclose(merged, stored, rtol=1e-5, atol=0.0, equal_nan=True))


def read_merged(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of everything that `write_merged` wrote, shard by shard."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 it is no mapping
                yield name, file.get_tensor(name)


def check_names(ours: Iterable[str], start: Path, tied: set[str]) -> None:
    """What is published must be what engines load; ConfigError names the difference.

    Args:
        tied: names that a checkpoint may or may not repeat although they are another tensor's.
    """
    on_disk = names_on_disk(start)
    if on_disk is None:
        return
    missing, extra = sorted(on_disk - set(ours) - tied), sorted(set(ours) - on_disk)
    if missing or extra:
        raise ConfigError(
            f"model.model: {start} and the model built from it disagree about {len(missing) + len(extra)} tensors "
            f"(only on disk: {missing[:3]}, only in the model: {extra[:3]}), so engines could not load what is "
            "published; save the checkpoint anew with the installed transformers"
        )
