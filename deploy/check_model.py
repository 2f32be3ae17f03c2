"""The model's part of `rollmatch check`: metadata files and weight headers, no weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from deploy.check_data import ImageRules
from deploy.findings import Finding, error, note, warning
from deploy.model_files import (
    MODEL_TYPE,
    UNTRAINED,
    BrokenModelError,
    model_file,
    read_json,
    tensor_headers,
    token_ids,
    trained_tables,
    weight_files,
)
from deploy.run_paths import on_a_hub
from protocol.config import RunConfig, TunerConfig
from protocol.config.rules import MATCHING
from protocol.vocab import END_OF_TURN, CoordIds, find_missing

SPECIAL_TOKENS = (END_OF_TURN, "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
DEFAULT_RULES = ImageRules(multiple=32, min_pixels=None, max_pixels=None)
_WHERE = "model.model"


def check_model(config: RunConfig) -> tuple[list[Finding], ImageRules]:
    """What is wrong with the start checkpoint, and what its image processor takes."""
    folder = Path(config.model.model)
    if not folder.is_dir():
        if folder.exists() or not on_a_hub(_WHERE, config.model.model):
            return [
                error(_WHERE, f"{folder} is no folder; correct the path, it counts from the working directory")
            ], DEFAULT_RULES
        text = f"{folder} is no local folder and was taken for a name on a model hub; its weights were not checked"
        cached = model_file(config.model.model, "tokenizer.json")
        found = [] if cached is None else _unbroken(_coordinates(cached))
        return [warning(_WHERE, text), *found], DEFAULT_RULES
    if (merged := _merged_beside(folder)) is not None:
        text = f"{folder} is part of a run's checkpoint and no model; the whole model is {merged}, write that"
        return [error(_WHERE, text)], DEFAULT_RULES
    findings: list[Finding] = []
    rules = DEFAULT_RULES
    for part in (_architecture, _tokenizer, _weights):
        findings += _unbroken(part(folder, config))
    try:
        rules = _image_rules(folder)
    except BrokenModelError as broken:
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
    except BrokenModelError as broken:
        yield error(_WHERE, str(broken))


def _architecture(folder: Path, config: RunConfig) -> Iterator[Finding]:
    found = read_json(folder / "config.json")
    if found.get("model_type") != MODEL_TYPE:
        text = f"{folder} is a {found.get('model_type')!r} model, expected {MODEL_TYPE}; use such a checkpoint"
        yield error(_WHERE, text)
    positions = found.get("text_config", {}).get("max_position_embeddings")
    lengths = {"global_max_length": config.global_max_length}
    if config.matching.rollout_backend == "vllm":
        lengths[f"{MATCHING}.vllm.max_model_len"] = config.matching.vllm.max_model_len
    for path, length in lengths.items():
        if isinstance(positions, int) and length > positions:
            yield error(path, f"is {length}, the model has max_position_embeddings {positions}; lower it")


def _coordinates(tokenizer: Path) -> Iterator[Finding]:
    """Of a name on a hub, whose other files may be on the cluster only."""
    ids = token_ids(read_json(tokenizer))
    try:
        CoordIds.lookup(ids)
    except ValueError as raised:
        yield error(_WHERE, f"{tokenizer}: {raised}")


def _tokenizer(folder: Path, config: RunConfig) -> Iterator[Finding]:
    ids = token_ids(read_json(folder / "tokenizer.json"))
    try:
        coords = CoordIds.lookup(ids)
    except ValueError as raised:
        yield error(_WHERE, f"{folder}/tokenizer.json: {raised}")
    else:
        vocabulary = read_json(folder / "config.json").get("text_config", {}).get("vocab_size")
        if isinstance(vocabulary, int) and max(coords.ids) >= vocabulary:
            message = (
                f"coordinate ids reach {max(coords.ids)}, the embedding has {vocabulary} rows; resize it and save again"
            )
            yield error(_WHERE, message)
    missing = find_missing(SPECIAL_TOKENS, ids)
    if missing:
        yield error(_WHERE, f"{folder}/tokenizer.json lacks {', '.join(missing)}; use a Qwen3-VL tokenizer")
    has_file = any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json"))
    if "chat_template" not in read_json(folder / "tokenizer_config.json") and not has_file:
        yield error(_WHERE, f"{folder} has no chat template; add chat_template.jinja from the base model")


def _image_rules(folder: Path) -> ImageRules:
    """From preprocessor_config.json, or the `image_processor` of a joint processor_config.json."""
    path = folder / "preprocessor_config.json"
    if not path.is_file() and (folder / "processor_config.json").is_file():
        found = read_json(folder / "processor_config.json").get("image_processor", {})
    else:
        found = read_json(path)
    multiple = int(found.get("patch_size", 16)) * int(found.get("merge_size", 2))
    if not found.get("do_resize", True):
        return ImageRules(multiple, None, None)
    size = found.get("size") or {}
    bounds = size.get("shortest_edge", found.get("min_pixels")), size.get("longest_edge", found.get("max_pixels"))
    return ImageRules(multiple, *bounds)


def _weights(folder: Path, config: RunConfig) -> Iterator[Finding]:
    files = weight_files(folder)
    names = sorted({name for file in files for name in tensor_headers(file)})
    yield note(_WHERE, f"{len(names)} tensors in {len(files)} files in {folder}")
    tables = trained_tables(read_json(folder / "config.json"))
    yield from _targets(config, names, {"lm_head"} - set(tables))
    if (folder / UNTRAINED).is_file():
        yield from _untrained(folder, config, tables)


def _untrained(folder: Path, config: RunConfig, tables: list[str]) -> Iterator[Finding]:
    """The first run after `rollmatch add-coordinates`: its export has the note no more."""
    tuner, matching = config.tuner, config.matching
    saved = {name.rsplit(".", 1)[-1] for name in tuner.modules_to_save}
    if "lm_head" in saved and "lm_head" not in tables:  # a tied head is the embedding
        saved.add("embed_tokens")
    if tuner.train_type == "full":
        where, change, reached = "tuner.freeze_llm", "set it to false", not tuner.freeze_llm
    else:
        where, change, reached = "tuner.modules_to_save", f"add {', '.join(tables)}", set(tables) <= saved
    if not reached:
        text = f"leaves the coordinate tokens of {folder} as rollmatch add-coordinates wrote them, untrained; {change}"
        yield warning(where, text)
    if matching.prefix_policy == "rollout":
        text = f"rollout keeps what {folder} writes, which does not know the format yet, and trains none of it"
        yield warning(f"{MATCHING}.prefix_policy", f"{text}; write matched")
    if not matching.teach_format:
        text = f"is false, so {folder} learns no opening brace and no description, and may write coordinates for words"
        yield warning(f"{MATCHING}.teach_format", f"{text}; write true")


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
