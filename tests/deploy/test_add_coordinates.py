"""`rollmatch add-coordinates`: what is new, what stays as it was, and what is refused before anything is written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from deploy.add_coordinates import TOKENS, add_coordinates
from deploy.cli import main
from deploy.model_files import INDEX, UNTRAINED
from learner.export import COPIED
from protocol.errors import ConfigError
from protocol.vocab import CoordIds, coord_token
from tests.learner import tiny

WORDS = (*tiny.SPECIALS, "<|video_pad|>")
FIRST = 256 + len(WORDS)
ROWS = 300
"""Of the ordinary checkpoint, whose table is padded: some of the new ids lie within, most behind."""


def ordinary(folder: Path, *, tied: bool = True) -> Path:
    """A checkpoint without coordinate tokens, in bfloat16 and several weight files."""
    tiny.write_processor(folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in WORDS])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    settings["added_tokens_decoder"] = {str(256 + at): {"content": word, **flags} for at, word in enumerate(WORDS)}
    settings["additional_special_tokens"] = list(WORDS)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "README.md").write_text("licence")
    (folder / "pytorch_model.bin").write_bytes(b"an older copy of the weights")
    torch.manual_seed(0)
    model = Qwen3VLForConditionalGeneration(tiny.model_config(tokenizer, tied=tied, vocab_size=ROWS))
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="60KB")
    return folder


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ordinary(tmp_path_factory.mktemp("ordinary"))


@pytest.fixture(scope="module")
def out(start: Path) -> Path:
    folder = start.parent / "extended"
    add_coordinates(start, folder)
    return folder


def load(folder: Path) -> Any:
    return Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.bfloat16, use_safetensors=True)


def test_the_tokens_follow_the_last_id_and_the_others_stay_special(out: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert [tokenizer.get_vocab()[token] for token in TOKENS] == list(range(FIRST, FIRST + 1001))
    assert CoordIds.lookup(tokenizer.get_vocab()).ids[999] == FIRST + 1000
    assert tokenizer.extra_special_tokens == list(WORDS)
    ids = tokenizer.encode('"<|coord_12|>"<|image_pad|>')
    assert ids[1] == FIRST + 13
    assert tokenizer.decode(ids, skip_special_tokens=True) == '""'
    assert (out / "chat_template.jinja").read_text() == tiny.TEMPLATE
    added = json.loads((out / "tokenizer.json").read_text())["added_tokens"]
    assert [(each["id"], each["content"]) for each in added[len(WORDS) :]] == list(enumerate(TOKENS, start=FIRST))
    flags = [{k: v for k, v in each.items() if k not in ("id", "content")} for each in added]
    assert all(each == flags[0] for each in flags), "as the checkpoint's own words"
    described = json.loads((out / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    assert described == {str(each["id"]): {k: v for k, v in each.items() if k != "id"} for each in added}


@pytest.mark.parametrize("tied", [True, False])
def test_what_the_model_said_of_its_own_words_it_still_says(tmp_path: Path, tied: bool) -> None:
    before = ordinary(tmp_path / "before", tied=tied)
    summary = add_coordinates(before, tmp_path / "after")
    assert summary["ids"] == [FIRST, FIRST + 1000]
    assert summary["rows"] == [ROWS, 1280], "a multiple of 128"
    old, new = load(before), load(tmp_path / "after")
    assert new.config.text_config.vocab_size == len(new.lm_head.weight) == 1280
    ids = torch.arange(FIRST)[None, ::7]
    with torch.no_grad():
        assert torch.equal(old(input_ids=ids).logits[..., :FIRST], new(input_ids=ids).logits[..., :FIRST])
    index = json.loads((tmp_path / "after" / INDEX).read_text())
    on_disk = sum(
        tensor.nbytes for file in (tmp_path / "after").glob("*.safetensors") for tensor in load_file(file).values()
    )
    assert index["metadata"]["total_size"] == on_disk


def test_near_bins_are_near_no_two_are_equal_and_together_they_are_the_mean(out: Path) -> None:
    rows = load(out).get_input_embeddings().weight.detach()
    bins = rows[FIRST + 1 : FIRST + 1001]
    assert len(bins.unique(dim=0)) == 1000
    bins, mean = bins.float(), rows[:FIRST].float().mean(0)
    assert (bins[1:] - bins[:-1]).norm(dim=1).max() < 0.1 * (bins[500:] - bins[:500]).norm(dim=1).min()
    assert torch.equal(rows[FIRST], mean.bfloat16()), "the wildcard"
    assert torch.equal(rows[FIRST + 1001 :], mean.bfloat16().expand(1280 - FIRST - 1001, -1)), "padding"


def test_only_files_with_a_table_are_written_anew(start: Path, out: Path) -> None:
    files = sorted(start.glob("*.safetensors"))
    shared = [file.name for file in files if file.samefile(out / file.name)]
    table = json.loads((start / INDEX).read_text())["weight_map"]["model.language_model.embed_tokens.weight"]
    assert len(files) > 2
    assert shared == [file.name for file in files if file.name != table]
    assert (out / "README.md").read_text() == "licence"
    assert not (out / "pytorch_model.bin").exists(), "it would be the old model"


def test_an_export_leaves_the_note_behind(out: Path) -> None:
    assert "[embed_tokens]" in (out / UNTRAINED).read_text()
    assert Path(UNTRAINED).suffix not in COPIED


def test_a_single_file_on_another_disk_is_enough(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    for path in start.glob("*.json*"):
        if path.name != INDEX:
            (whole / path.name).write_bytes(path.read_bytes())
    settings = json.loads((whole / "tokenizer_config.json").read_text())
    del settings["added_tokens_decoder"]  # newer checkpoints have none
    (whole / "tokenizer_config.json").write_text(json.dumps(settings))
    tensors = {name: tensor for file in start.glob("*.safetensors") for name, tensor in load_file(file).items()}
    save_file(tensors, whole / "model.safetensors", metadata={"format": "pt"})

    def refuse(*_: object) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    add_coordinates(whole, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == settings
    add_coordinates(start, tmp_path / "copied")
    assert load(tmp_path / "out").state_dict().keys() == load(tmp_path / "copied").state_dict().keys()


def test_a_link_that_leads_nowhere_is_not_overwritten(start: Path, tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "unmounted")
    with pytest.raises(ConfigError, match="exists, and nothing is overwritten"):
        add_coordinates(start, tmp_path / "out")


def change(folder: Path, name: str, *keys: str | int, value: object) -> None:
    content = json.loads((folder / name).read_text())
    inner = content
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    (folder / name).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (lambda folder: (folder / "config.json").write_text("{"), "config.json cannot be read"),
        (lambda folder: change(folder, "config.json", "text_config", "vocab_size", value=None), "use a Qwen3-VL"),
        (lambda folder: change(folder, "config.json", "text_config", "vocab_size", value=299), "has 300 rows"),
        (
            lambda folder: change(folder, "tokenizer.json", "added_tokens", -1, "id", value=ROWS),
            "tokenizer.json has ids up to 300, and its tables have 300 rows",
        ),
        (
            lambda folder: next(folder.glob("model-00002*")).unlink(),
            "1 files that are missing, first model-00002",
        ),
        (lambda folder: (folder / INDEX).unlink(), "use a checkpoint in safetensors"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(tmp_path: Path, broken: Any, words: str) -> None:
    folder = ordinary(tmp_path / "model")
    broken(folder)
    with pytest.raises(ConfigError, match=words):
        add_coordinates(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tokens_that_are_there_and_a_folder_that_exists_are_refused(start: Path, out: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has 1001 of the 1001 coordinate tokens already; use it as it is"):
        add_coordinates(out, out.parent / "again")
    for taken in (out, tmp_path):
        with pytest.raises(ConfigError, match="exists, and nothing is overwritten; name a new folder"):
            add_coordinates(start, taken)


def test_a_disk_that_fills_up_or_a_file_that_is_cut_short_leaves_no_half_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = ordinary(tmp_path / "model"), tmp_path / "out"

    def refuse(*_: object, **__: object) -> None:
        raise SafetensorError("No space left on device")

    with monkeypatch.context() as full:
        full.setattr("learner.coordinate_rows.save_file", refuse)
        assert main(["add-coordinates", str(folder), "--out", str(out)]) == 1
    assert "No space left on device; is a disk full" in capsys.readouterr().err
    table = json.loads((folder / INDEX).read_text())["weight_map"]["model.language_model.embed_tokens.weight"]
    other = next(file.name for file in folder.glob("*.safetensors") if file.name != table)
    whole = (folder / other).read_bytes()
    (folder / other).write_bytes(whole[:-1])
    assert main(["add-coordinates", str(folder), "--out", str(out)]) == 2
    told = f"{folder / other} is cut short: it has {len(whole) - 1} of {len(whole)} bytes; download it again"
    assert told in capsys.readouterr().err
    (folder / other).write_bytes(whole)
    with (folder / table).open("r+b") as file:
        file.truncate((folder / table).stat().st_size - 1)
    assert main(["add-coordinates", str(folder), "--out", str(out)]) == 2
    assert re.search(r"is cut short: it has \d+ of \d+ bytes; download it again", capsys.readouterr().err)
    assert [*tmp_path.iterdir()] == [folder]


def test_a_quantised_table_is_refused(start: Path, tmp_path: Path) -> None:
    for path in start.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    name = "model.language_model.embed_tokens.weight"
    file = tmp_path / json.loads((start / INDEX).read_text())["weight_map"][name]
    tensors = load_file(file)
    save_file(tensors | {name: tensors[name].to(torch.int8)}, file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"embed_tokens.weight is quantised \(I8\)"):
        add_coordinates(tmp_path, tmp_path / "out")


def test_the_command_says_where_it_is_and_what_must_be_trained(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    assert main(["add-coordinates", str(start), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr()
    assert "tuner.modules_to_save: [embed_tokens]" in printed.err
    assert re.search(r"model-00001-of-\d+.safetensors \(1 of \d+, 0.0 GiB\) is (written anew|linked)", caplog.text)
    assert json.loads(printed.out)["ids"] == [FIRST, FIRST + 1000]
    assert main(["add-coordinates", "Qwen/nowhere", "--out", str(tmp_path / "other")]) == 2
    assert "nor in the hub's local cache" in capsys.readouterr().err


def test_a_name_of_the_hub_is_found_in_its_cache(start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.add_coordinates.model_file", lambda model, name: start / name)
    assert main(["add-coordinates", "Qwen/Qwen3-VL-4B-Instruct", "--out", str(tmp_path / "out")]) == 0
    assert coord_token(7) in AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab()
