"""The model's part of `rollmatch check`: metadata files and weight headers, no weights."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from deploy.check_data import ImageRules
from deploy.findings import Finding, error, note, warning
from protocol.config import RunConfig, TunerConfig
from protocol.vocab import END_OF_TURN, CoordIds, find_missing

MODEL_TYPE = "qwen3_vl"
"""The dense models. transformers would load a mixture of experts as one, with new weights in the place of experts."""
SPECIAL_TOKENS = (END_OF_TURN, "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
DEFAULT_RULES = ImageRules(multiple=32, min_pixels=None, max_pixels=None)
_WHERE = "model.model"
_MAX_HEADER_BYTES = 1 << 27


class _Broken(Exception):
    """A metadata file that cannot be read; ends the checks that need it."""


def check_model(config: RunConfig) -> tuple[list[Finding], ImageRules]:
    """What is wrong with the start checkpoint, and what its image processor takes."""
    folder = Path(config.model.model)
    if not folder.is_dir():
        if folder.exists() or folder.is_absolute() or config.model.model.count("/") != 1:
            return [
                error(_WHERE, f"{folder} is no folder; correct the path, it counts from the working directory")
            ], DEFAULT_RULES
        text = f"{folder} is no local folder and was taken for a name on a model hub; its files were not checked"
        return [warning(_WHERE, text)], DEFAULT_RULES
    if (merged := _merged_beside(folder)) is not None:
        text = f"{folder} is part of a run's checkpoint and no model; the whole model is {merged}, write that"
        return [error(_WHERE, text)], DEFAULT_RULES
    findings: list[Finding] = []
    rules = DEFAULT_RULES
    for part in (_architecture, _tokenizer, _weights):
        findings += _unbroken(part(folder, config))
    try:
        rules = _image_rules(folder)
    except _Broken as broken:
        findings.append(error(_WHERE, str(broken)))
    return findings, rules


def _merged_beside(folder: Path) -> Path | None:
    """The export of a run's checkpoint whose folder, or adapter, was named in its place."""
    if (folder / "config.json").exists():
        return None
    found = (place / "merged" for place in (folder, folder.absolute().parent))
    return next((path for path in found if (path / "config.json").is_file()), None)


def _unbroken(findings: Iterator[Finding]) -> Iterator[Finding]:
    try:
        yield from findings
    except _Broken as broken:
        yield error(_WHERE, str(broken))


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise _Broken(f"{path} is missing; use a complete checkpoint folder") from None
    except (OSError, ValueError) as raised:
        raise _Broken(f"{path} cannot be read ({raised}); use a complete checkpoint folder") from raised
    if not isinstance(data, dict):
        raise _Broken(f"{path} holds no JSON object; use a complete checkpoint folder")
    return data


def _architecture(folder: Path, config: RunConfig) -> Iterator[Finding]:
    found = _read(folder / "config.json")
    if found.get("model_type") != MODEL_TYPE:
        text = f"{folder} is a {found.get('model_type')!r} model, expected {MODEL_TYPE}; use such a checkpoint"
        yield error(_WHERE, text)
    positions = found.get("text_config", {}).get("max_position_embeddings")
    lengths = {"global_max_length": config.global_max_length}
    if config.matching.rollout_backend == "vllm":
        lengths["custom.extra.rollout_matching.vllm.max_model_len"] = config.matching.vllm.max_model_len
    for path, length in lengths.items():
        if isinstance(positions, int) and length > positions:
            yield error(path, f"is {length}, the model has max_position_embeddings {positions}; lower it")


def _tokenizer(folder: Path, config: RunConfig) -> Iterator[Finding]:
    ids = _token_ids(_read(folder / "tokenizer.json"))
    try:
        coords = CoordIds.lookup(ids)
    except ValueError as raised:
        yield error(_WHERE, f"{folder}/tokenizer.json: {raised}")
    else:
        vocabulary = _read(folder / "config.json").get("text_config", {}).get("vocab_size")
        if isinstance(vocabulary, int) and max(coords.ids) >= vocabulary:
            message = (
                f"coordinate ids reach {max(coords.ids)}, the embedding has {vocabulary} rows; resize it and save again"
            )
            yield error(_WHERE, message)
    missing = find_missing(SPECIAL_TOKENS, ids)
    if missing:
        yield error(_WHERE, f"{folder}/tokenizer.json lacks {', '.join(missing)}; use a Qwen3-VL tokenizer")
    has_file = any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json"))
    if "chat_template" not in _read(folder / "tokenizer_config.json") and not has_file:
        yield error(_WHERE, f"{folder} has no chat template; add chat_template.jinja from the base model")


def _token_ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    vocabulary = tokenizer.get("model", {}).get("vocab")
    ids = dict(vocabulary) if isinstance(vocabulary, dict) else {}
    ids.update({entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])})
    return ids


def _image_rules(folder: Path) -> ImageRules:
    """From preprocessor_config.json, or the `image_processor` of a joint processor_config.json."""
    path = folder / "preprocessor_config.json"
    if not path.is_file() and (folder / "processor_config.json").is_file():
        found = _read(folder / "processor_config.json").get("image_processor", {})
    else:
        found = _read(path)
    multiple = int(found.get("patch_size", 16)) * int(found.get("merge_size", 2))
    if not found.get("do_resize", True):
        return ImageRules(multiple, None, None)
    size = found.get("size") or {}
    bounds = size.get("shortest_edge", found.get("min_pixels")), size.get("longest_edge", found.get("max_pixels"))
    return ImageRules(multiple, *bounds)


def _weights(folder: Path, config: RunConfig) -> Iterator[Finding]:
    files = _weight_files(folder)
    names = sorted({name for file in files for name in _tensor_names(file)})
    yield note(_WHERE, f"{len(names)} tensors in {len(files)} files in {folder}")
    tied = _read(folder / "config.json").get("tie_word_embeddings", True)
    yield from _targets(config, names, {"lm_head"} if tied else set())


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        single = folder / "model.safetensors"
        if not single.is_file():
            raise _Broken(f"{folder} has neither {single.name} nor {index.name}; use a checkpoint in safetensors")
        return [single]
    files = [folder / name for name in sorted(set(_read(index).get("weight_map", {}).values()))]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise _Broken(f"{index} names {len(missing)} files that are missing, first {missing[0]}; complete the download")
    return files


def _tensor_names(file: Path) -> Iterable[str]:
    """Reads the header: 8 bytes of length, then JSON."""
    with open(file, "rb") as opened:
        size = struct.unpack("<Q", opened.read(8).ljust(8, b"\0"))[0]
        if not 0 < size <= _MAX_HEADER_BYTES:
            raise _Broken(
                f"{file} is no safetensors file (header of {size} bytes); is it a Git LFS pointer? fetch the file"
            )
        try:
            header = json.loads(opened.read(size))
        except ValueError as raised:
            raise _Broken(f"{file} has a broken header ({raised}); fetch the file again") from raised
    return (name for name in header if name != "__metadata__")


def _head_target(tuner: TunerConfig) -> Iterator[Finding]:
    """The learner lets no adapter into the head."""
    regex = tuner.target_regex
    selected = "lm_head" in tuner.target_modules if regex is None else re.fullmatch(regex, "lm_head") is not None
    if selected and not tuner.freeze_llm:
        where, value = ("target_modules", list(tuner.target_modules)) if regex is None else ("target_regex", regex)
        yield error(
            f"tuner.{where}",
            f"{value!r} selects lm_head, whose logits are computed in chunks from a plain weight; take it out, or put "
            "it into tuner.modules_to_save",
        )


def _targets(config: RunConfig, names: list[str], unstored: set[str]) -> Iterator[Finding]:
    """Adapters must find the modules that they are for. `unstored`: a tied head, whose tensor is the embedding's."""
    tuner = config.tuner
    if tuner.train_type != "lora":
        return
    yield from _head_target(tuner)
    modules = {name.rsplit(".", 1)[0] for name in names}
    if tuner.target_regex is not None:
        if not any(re.fullmatch(tuner.target_regex, module) for module in modules):
            text = f"matches none of the checkpoint's {len(modules)} module names, the first is {min(modules)}"
            yield warning(
                "tuner.target_regex", f"{text}; the expression must match a whole name, as the loaded model has it"
            )
        return
    wanted = [name for name in tuner.target_modules if name != "all-linear"]
    for name in (*wanted, *tuner.modules_to_save):
        if not any(module == name or module.endswith(f".{name}") for module in modules | unstored):
            where = "tuner.target_modules" if name in wanted else "tuner.modules_to_save"
            yield error(where, f"{name!r} is no module of the model; correct the name")
