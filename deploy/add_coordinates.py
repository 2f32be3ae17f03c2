"""`rollmatch add-coordinates`: a checkpoint without coordinate tokens → a folder of its own that has them, untrained.

tokenizer.json, tokenizer_config.json    1,001 special tokens behind the last id (SPEC 3)
weight files with embed_tokens, lm_head  written anew, with more rows; one file is in memory at a time
other weight files                       the same files, as hard links where the disk allows it
config.json, the weights' index          the new sizes
everything else                          copied: chat template, generation and image settings
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deploy.model_files import (
    INDEX,
    MODEL_TYPE,
    UNTRAINED,
    model_file,
    read_json,
    tensor_headers,
    token_ids,
    trained_tables,
    weight_files,
)
from learner.checkpoint import replacing
from protocol.errors import ConfigError
from protocol.vocab import NUM_BINS, coord_token

TOKENS = ("<|coord_*|>", *(coord_token(bin_) for bin_ in range(NUM_BINS)))
"""In the order of their ids."""
TABLES = ("embed_tokens.weight", "lm_head.weight")
ROW_MULTIPLE = 128
"""To which Qwen pads its tables."""
DTYPES = ("BF16", "F16", "F32")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")

log = logging.getLogger("rollmatch")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("model", help="checkpoint folder, or a name whose files are in the hub's local cache")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder to write; it must be new")


def run(arguments: argparse.Namespace) -> int:
    """Writes the folder, says what must be trained, and prints, last, the summary as one JSON line."""
    config = model_file(arguments.model, "config.json")
    if config is None:
        where = "neither a folder with a config.json nor in the hub's local cache; correct the name, or download it"
        raise ConfigError(f"{arguments.model}: {where}")
    summary = add_coordinates(config.parent, arguments.out)
    print(f"rollmatch: {(arguments.out / UNTRAINED).read_text(encoding='utf-8')}", file=sys.stderr, end="")
    print(json.dumps(summary))
    return 0


def add_coordinates(folder: Path, out: Path) -> dict[str, Any]:
    """Writes `out`, whole or not at all, and returns what was done; ConfigError, before that, where it cannot be."""
    if out.exists() or out.is_symlink():
        raise ConfigError(f"--out: {out} exists, and nothing is overwritten; name a new folder")
    config, tokenizer = read_json(folder / "config.json"), read_json(folder / "tokenizer.json")
    settings, ids = read_json(folder / "tokenizer_config.json"), token_ids(tokenizer)
    if present := sum(token in ids for token in TOKENS):
        text = f"its tokenizer has {present} of the {len(TOKENS)} coordinate tokens already; use it as it is"
        raise ConfigError(f"{folder}: {text}, or begin with a checkpoint that has none")
    tables = _tables(folder, config)
    first, before = max(ids.values()) + 1, config["text_config"]["vocab_size"]
    if first > before:
        text = f"tokenizer.json has ids up to {first - 1}, and its tables have {before} rows, so ids are without one"
        raise ConfigError(f"{folder}: {text}; use a checkpoint whose tokenizer is its own")
    rows = max(before, -(-(first + len(TOKENS)) // ROW_MULTIPLE) * ROW_MULTIPLE)
    digits = [ids[str(digit)] for digit in range(10)]
    with replacing(out.absolute()) as new:
        _write_weights(folder, new, tables, digits=digits, first=first, rows=rows)
        _copy_others(folder, new)
        _write_tokenizer(new, tokenizer, settings, first)
        _write_sizes(new, config, rows)
        _write_note(new, trained_tables(config))
    names = sorted(name for found in tables.values() for name in found)
    return {"model": str(out), "ids": [first, first + len(TOKENS) - 1], "rows": [before, rows], "tables": names}


def _tables(folder: Path, config: Mapping[str, Any]) -> dict[str, list[str]]:
    """The tables of each weight file; ConfigError where one cannot be extended."""
    rows = config.get("text_config", {}).get("vocab_size")
    headers = {file.name: tensor_headers(file) for file in weight_files(folder)}
    found = {file: [name for name in header if name.endswith(TABLES)] for file, header in headers.items()}
    if config.get("model_type") != MODEL_TYPE or not any(found.values()) or not isinstance(rows, int):
        what = f"a {config.get('model_type')!r} model with {rows} rows (text_config.vocab_size)"
        raise ConfigError(f"{folder}: is {what} and {sum(map(len, found.values()))} tables; use a Qwen3-VL checkpoint")
    for file, name in ((file, name) for file, names in found.items() for name in names):
        dtype, length = headers[file][name]["dtype"], headers[file][name]["shape"][0]
        if dtype not in DTYPES:
            raise ConfigError(f"{folder / file}: {name} is quantised ({dtype}); use a checkpoint in bfloat16")
        if length != rows:
            text = f"{name} has {length} rows and text_config.vocab_size is {rows}; download the checkpoint again"
            raise ConfigError(f"{folder / file}: {text}")
    return found


def _write_weights(folder: Path, out: Path, tables: Mapping[str, list[str]], **sizes: Any) -> None:
    """All weight files. `sizes` as `extend_file` takes them."""
    from learner.coordinate_rows import extend_file

    for number, (name, inside) in enumerate(tables.items(), start=1):
        how = "written anew" if inside else "linked or copied"
        size = (folder / name).stat().st_size / 2**30
        log.info("%s (%d of %d, %.1f GiB) is %s", name, number, len(tables), size, how)
        if inside:
            extend_file(folder / name, out / name, inside, **sizes)
        else:
            _link(folder / name, out / name)


def _link(source: Path, target: Path) -> None:
    """Weights are never written in place, so both folders may share them."""
    try:
        os.link(source.resolve(), target)  # files of the hub's cache are symbolic links
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, target)


def _copy_others(folder: Path, out: Path) -> None:
    """Weights in another format are those of the old model, and left out."""
    for path in folder.iterdir():
        if path.is_file() and path.suffix not in WEIGHTS:
            shutil.copyfile(path, out / path.name)


def _write_tokenizer(out: Path, tokenizer: dict[str, Any], settings: dict[str, Any], first: int) -> None:
    """The files as they are, and the new tokens; not by way of transformers, which renames and drops what it knows."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    added = {first + at: {"content": token, **flags} for at, token in enumerate(TOKENS)}
    tokenizer["added_tokens"] += [{"id": id_, **token} for id_, token in added.items()]
    _write(out / "tokenizer.json", tokenizer)
    if "added_tokens_decoder" in settings:
        settings["added_tokens_decoder"] |= {str(id_): token for id_, token in added.items()}
        _write(out / "tokenizer_config.json", settings)


def _write_sizes(out: Path, config: dict[str, Any], rows: int) -> None:
    for section in (config, config["text_config"]):
        if "vocab_size" in section:
            section["vocab_size"] = rows
    _write(out / "config.json", config)
    if (out / INDEX).is_file():
        ends = ([each["data_offsets"][1] for each in tensor_headers(file).values()] for file in weight_files(out))
        _write(out / INDEX, read_json(out / INDEX) | {"metadata": {"total_size": sum(map(max, ends))}})


def _write_note(out: Path, names: Iterable[str]) -> None:
    note = (
        "the rows of the coordinate tokens are not trained, and an adapter alone does not reach them: write "
        f"tuner.train_type: full, or tuner.modules_to_save: [{', '.join(names)}]. docs/tutorial.md says how to begin.\n"
    )
    (out / UNTRAINED).write_text(note, encoding="utf-8")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
