"""`rollmatch check`: one clear finding for each thing that is wrong, all at once, and nothing heavy imported."""

from __future__ import annotations

import errno
import io
import itertools
import json
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
from PIL import Image
from rich.console import Console

from deploy import check_data
from deploy.check import _num_gpus, check_run, print_findings, require_clean
from deploy.check_data import ImageRules
from deploy.findings import error, note
from deploy.model_files import UNTRAINED
from protocol import patience
from protocol.config import RunConfig, config_from_mapping
from protocol.contracts import Record
from protocol.errors import ConfigError
from protocol.vocab import coord_token

ROOT = Path(__file__).parents[2]
SPECIAL = ("<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
MATCHING = "custom.extra.rollout_matching"


def record(**changes: Any) -> dict[str, Any]:
    return {
        "images": ["a.png"],
        "width": 64,
        "height": 64,
        "objects": [{"bbox_2d": [1, 2, 3, 4], "desc": "cat"}],
    } | changes


def write_data(folder: Path, name: str, *lines: dict[str, Any] | str) -> Path:
    Image.new("RGB", (64, 64)).save(folder / "a.png")
    texts = [text if isinstance(text, str) else json.dumps(text) for text in lines or [record()] * 4]
    (folder / name).write_text("\n".join(texts), encoding="utf-8")
    return folder / name


def added_token(name: str, at: int) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": name, "id": at, "special": True, **flags}


def weight_header(tensors: object) -> bytes:
    """What a weight file begins with."""
    encoded = json.dumps(tensors).encode()
    return struct.pack("<Q", len(encoded)) + encoded


def write_model(folder: Path, **changes: Any) -> Path:
    """The metadata of a checkpoint, and a weight file that holds a header only. `changes` replaces or drops (None)."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [coord_token(bin_) for bin_ in range(1000)] + list(SPECIAL)
    header = {"model.layers.0.self_attn.q_proj.weight": {"data_offsets": [0, 0]}, "__metadata__": {}}
    files: dict[str, Any] = {
        "config.json": {
            "model_type": "qwen3_vl",
            "text_config": {"vocab_size": 2000, "max_position_embeddings": 4096},
        },
        "tokenizer.json": {
            "model": {"type": "BPE", "vocab": {"a": 0}, "merges": []},
            "added_tokens": [added_token(name, at) for at, name in enumerate(names, start=1)],
        },
        "tokenizer_config.json": {"chat_template": "{{ messages }}"},
        "preprocessor_config.json": {"do_resize": False, "patch_size": 16, "merge_size": 2},
        "model.safetensors": weight_header(header),
    } | {name.replace("__", "."): value for name, value in changes.items()}
    for name, value in files.items():
        if value is not None:
            (folder / name).write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    return folder


def run(tmp_path: Path, **changes: Any) -> RunConfig:
    """A run in which nothing is wrong; `changes` sets keys, `section__key` those of a section."""
    values: dict[str, Any] = {
        "global_max_length": 4096,
        "model": {"model": str(write_model(tmp_path / "model"))},
        "training": {"output_dir": str(tmp_path / "runs"), "effective_batch_size": 4},
        "custom": {
            "train_jsonl": str(write_data(tmp_path, "train.jsonl")),
            "emit_norm": "none",
            "json_format": "standard",
            "extra": {"rollout_matching": {"vllm": {"max_model_len": 1024}}},
        },
    }
    for path, value in changes.items():
        section, _, key = path.partition("__")
        if key == "rollout_matching":
            values["custom"]["extra"]["rollout_matching"] |= value
        elif not key:
            values[section] = value
        else:
            values.setdefault(section, {})[key] = value
    return config_from_mapping(values)


def errors(config: RunConfig) -> list[str]:
    return [str(finding) for finding in check_run(config) if finding.is_error]


def only_error(config: RunConfig) -> str:
    found = errors(config)
    assert len(found) == 1, found
    return found[0]


def test_a_clean_run_has_no_errors_and_says_what_was_looked_at(tmp_path: Path) -> None:
    findings = check_run(run(tmp_path))
    assert [finding.severity for finding in findings] == ["note", "note", "note"]
    assert "4 records in" in findings[0].message
    assert "1..4 were checked, with 4 objects, and 4 of the images were decoded" in findings[0].message
    assert "of 4 records an answer with all objects has" in findings[1].message
    assert "1 tensors in 1 files" in findings[2].message
    require_clean(run(tmp_path))


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    train = write_data(
        tmp_path, "broken.jsonl", record(objects=[{"bbox_2d": [1, 2, 3], "desc": "a"}]), record(images=["b.png"])
    )
    config = run(tmp_path, custom__train_jsonl=str(train), training__metric_for_best_model="eval_f1")
    write_model(tmp_path / "model", config__json={"model_type": "llama"})
    with pytest.raises(ConfigError) as caught:
        require_clean(config)
    lines = str(caught.value).splitlines()
    assert lines[0] == "5 things are wrong"
    assert "training.metric_for_best_model: 'eval_f1' is no evaluation metric" in lines[1]
    assert f"{train}:1: objects[0].bbox_2d has 3 values, expected 4" in lines[2]
    assert f"{train}:2: {tmp_path / 'b.png'} is missing" in lines[3]
    assert "custom.train_jsonl: 2 records fill no window" in lines[4]
    assert "is a 'llama' model" in lines[5]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([record(images=["gone.png"])], "gone.png is missing"),
        ([record(images=["train.jsonl"])], "cannot be read"),
        ([record(width=32)], "has 64x64 pixels, the record says 32x64"),
        ([record(images=["deep.png"])], "is grey with more than 8 bits (I;16)"),
        (["{"], "is no JSON"),
    ],
)
def test_a_broken_line_or_image_is_one_error(tmp_path: Path, lines: list[Any], words: str) -> None:
    config = run(tmp_path)
    Image.new("I;16", (64, 64)).save(tmp_path / "deep.png")
    path = write_data(tmp_path, "train.jsonl", *lines, *[record()] * 3)
    message = only_error(config)
    assert message.startswith(f"{path}:1: ")
    assert words in message


def test_many_equal_errors_are_folded_into_a_count(tmp_path: Path) -> None:
    config = run(tmp_path)
    write_data(tmp_path, "train.jsonl", *[record(images=["gone.png"])] * (check_data.SHOWN + 7))
    found = errors(config)
    assert len(found) == check_data.SHOWN + 1
    assert found[-1] == "custom.train_jsonl: 7 more of the same kind are not shown"


def test_lines_behind_the_limit_are_counted_and_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run(tmp_path)
    write_data(tmp_path, "train.jsonl", *[record()] * 4, "broken")
    monkeypatch.setattr(check_data, "MAX_LINES", 4)
    findings = check_run(config)
    assert not [finding for finding in findings if finding.is_error]
    assert "5 records in" in findings[0].message
    assert "1..4 were checked" in findings[0].message


def test_headers_are_read_by_several_threads_and_told_of_in_the_records_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each open waits for another seven, and the first of them is the last to go on."""
    config = run(tmp_path)
    path = write_data(tmp_path, "train.jsonl", *[record(images=[f"{number}.png"]) for number in range(16)])
    together, after_it = threading.Barrier(8, timeout=30), threading.Event()

    def opened(image: Path, **_: object) -> None:
        together.wait()
        if image.name == "0.png":
            assert after_it.wait(timeout=30)
        after_it.set()
        raise MemoryError(f"of {image.name}")  # a broken file makes Pillow raise almost anything

    monkeypatch.setattr(check_data.Image, "open", opened)
    told = [f"{path}:{at + 1}: {tmp_path}/{at}.png cannot be read (of {at}.png); replace the file" for at in range(16)]
    assert errors(config) == told


def test_what_the_system_says_of_an_image_once_is_tried_again_until_many_are_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_records = check_data.SHOWN + 2 * check_data.AHEAD
    config = run(tmp_path)
    write_data(tmp_path, "train.jsonl", *[record()] * num_records)
    monkeypatch.setattr(patience, "PAUSE_S", 0.0)
    whole, opened = Image.open, itertools.count(1)

    def opening(last: int, *arguments: Any, **options: Any) -> Image.Image:
        if next(opened) <= last:
            raise OSError(errno.ESTALE, "Stale file handle")
        return whole(*arguments, **options)

    monkeypatch.setattr(Image, "open", partial(opening, patience.TRIES - 1))
    assert errors(config) == []
    opened = itertools.count(1)
    monkeypatch.setattr(Image, "open", partial(opening, 10 * num_records))
    assert len(errors(config)) == check_data.SHOWN + 1
    assert next(opened) - 1 < num_records + (patience.TRIES - 1) * (check_data.SHOWN + check_data.AHEAD)


def test_records_are_read_only_so_far_ahead_of_their_headers(tmp_path: Path) -> None:
    config = run(tmp_path)
    taken: list[Record] = []

    def records() -> Iterator[Record]:
        for index in range(10 * check_data.AHEAD):
            taken.append(Record(index=index, source="t:1", images=("gone",), width=8, height=8, objects=()))
            yield taken[-1]

    images = check_data._Images(config, ImageRules(32, None, None), 10 * check_data.AHEAD)
    for number, (found, is_taken) in enumerate(images.look_at(records())):
        assert found is taken[number]
        assert not is_taken
        assert len(taken) <= number + check_data.AHEAD


def test_missing_files_and_too_few_records_are_errors(tmp_path: Path) -> None:
    assert "cannot be read" in only_error(run(tmp_path, custom__train_jsonl=str(tmp_path / "gone.jsonl")))
    assert "fill no window" in only_error(run(tmp_path, training__effective_batch_size=5))


def test_validating_on_the_training_file_is_a_warning(tmp_path: Path) -> None:
    findings = check_run(run(tmp_path, custom__val_jsonl=str(tmp_path / "train.jsonl")))
    assert [finding.where for finding in findings if finding.severity == "warning"] == ["custom.val_jsonl"]


def test_images_all_over_the_file_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is cut off has a good header."""
    monkeypatch.setattr(check_data, "DECODED", 2)
    config = run(tmp_path)
    path = write_data(tmp_path, "train.jsonl", *[record()] * 2, *[record(images=["cut.png"])] * 2)
    Image.effect_noise((64, 64), 50).save(tmp_path / "cut.png")
    whole = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    assert only_error(config).startswith(f"{path}:3: cannot read image {tmp_path / 'cut.png'}")
    assert "2 of the images were decoded" in check_run(config)[0].message


def small_image(index: int, *, share: int) -> dict[str, Any]:
    """A record of a 64 x 64 image whose box ends at `share` percent of its sides, in pixels."""
    corner = 64 * share // 100
    return record(objects=[{"bbox_2d": [0, index, corner, corner], "desc": "cat"}])


@pytest.mark.parametrize(("share", "count", "asked"), [(100, 20, True), (100, 19, False), (150, 20, False)])
def test_coordinates_that_look_like_pixels_are_asked_about(tmp_path: Path, share: int, count: int, asked: bool) -> None:
    config = run(tmp_path)
    first = small_image(0, share=share)
    write_data(tmp_path, "train.jsonl", first, *[small_image(at, share=90) for at in range(1, count)])
    found = [finding.message for finding in check_run(config) if finding.severity == "warning"]
    assert ["are these pixels?" in message for message in found] == ([True] if asked else [])


def test_a_file_without_objects_is_a_warning(tmp_path: Path) -> None:
    config = run(tmp_path)
    write_data(tmp_path, "train.jsonl", *[record(objects=[])] * 4)
    (found,) = [str(finding) for finding in check_run(config) if finding.severity == "warning"]
    assert found.startswith("custom.train_jsonl: none of 4 records has an object")


@pytest.mark.parametrize("indent", [None, 2])
def test_a_coco_file_in_the_place_of_records_names_the_import(tmp_path: Path, indent: int | None) -> None:
    config = run(tmp_path)
    coco = {"images": [{"id": 1, "file_name": "a.png", "width": 64, "height": 64}], "annotations": [], "categories": []}
    (tmp_path / "train.jsonl").write_text(json.dumps(coco, indent=indent))
    assert "rollmatch import-coco" in errors(config)[0]


def test_a_box_with_its_corners_turned_is_a_warning(tmp_path: Path) -> None:
    turned = {"desc": "cat", "bbox_2d": [300, 10, 200, 90]}
    data = write_data(tmp_path, "turned.jsonl", *([record(objects=[turned])] * 4))
    findings = check_run(run(tmp_path, custom__train_jsonl=str(data)))
    found = [finding for finding in findings if finding.severity == "warning"]
    assert str(found[0]).startswith(f"{data}:1: bbox_2d (300, 10, 200, 90) of 'cat' is no x1, y1, x2, y2")


def test_image_rules_follow_the_processor() -> None:
    free = ImageRules(multiple=32, min_pixels=None, max_pixels=None)
    assert free.problem(64, 96) is None
    assert "expected multiples of 32" in str(free.problem(64, 95))
    bounded = ImageRules(multiple=32, min_pixels=8192, max_pixels=16384)
    assert "shrinks above 16384" in str(bounded.problem(256, 96))
    assert "enlarges below 8192" in str(bounded.problem(64, 64))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"config__json": None}, "config.json is missing"),
        ({"tokenizer__json": {"added_tokens": []}}, "lacks 1000 of 1000 coordinate tokens"),
        (
            {"config__json": {"model_type": "qwen3_vl", "text_config": {"vocab_size": 900}}},
            "the embedding has 900 rows",
        ),
        ({"tokenizer_config__json": {}}, "has no chat template"),
        ({"preprocessor_config__json": None}, "preprocessor_config.json is missing"),
        ({"model__safetensors": None}, "has neither model.safetensors nor"),
        ({"model__safetensors": b"version https://git-lfs"}, "is it a Git LFS pointer?"),
        ({"model__safetensors": weight_header({"a": {}})}, "has a broken header"),
        ({"model__safetensors": weight_header([1, 2])}, "has a broken header"),
        ({"model__safetensors": weight_header({"a": 5})}, "has a broken header"),
        ({"model__safetensors": weight_header({"a": {"data_offsets": []}})}, "has a broken header"),
        ({"model__safetensors": weight_header({"a": {"data_offsets": [0, "4"]}})}, "has a broken header"),
        (
            {"model__safetensors": weight_header({"a": {"data_offsets": [0, 8]}}) + bytes(7)},
            "is cut short: it has 46 of 47 bytes; download it again",
        ),
        (
            {"model__safetensors__index__json": {"weight_map": {"a": "gone.safetensors"}}},
            "names 1 files that are missing",
        ),
        ({"model__safetensors__index__json": {"weight_map": ["a"]}}, "has no weight_map of tensor to file"),
        ({"model__safetensors__index__json": {"weight_map": {"a": 1}}}, "has no weight_map of tensor to file"),
        ({"model__safetensors__index__json": {}}, "has no weight_map of tensor to file"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_an_error(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    config = run(tmp_path)
    for file in (tmp_path / "model").iterdir():
        file.unlink()
    write_model(tmp_path / "model", **changes)
    assert any(words in message for message in errors(config)), errors(config)


def test_an_image_that_the_processor_would_change_is_an_error_at_its_line(tmp_path: Path) -> None:
    found = check_data.check_data(run(tmp_path), ImageRules(multiple=32, min_pixels=8192, max_pixels=None))
    told = next(str(finding) for finding in found if finding.is_error)
    assert told.startswith(f"{tmp_path}/train.jsonl:1: ")
    assert "enlarges below 8192" in told


def test_an_evaluation_of_the_training_file_is_told_by_whatever_name_it_has(tmp_path: Path) -> None:
    (tmp_path / "linked.jsonl").symlink_to(tmp_path / "train.jsonl")
    for name, is_told in (("linked.jsonl", True), ("val.jsonl", False)):
        config = run(tmp_path, custom__val_jsonl=str(tmp_path / name))
        if not is_told:
            write_data(tmp_path, name)
        assert any("is the training file" in finding.message for finding in check_run(config)) is is_told


def test_a_model_that_is_no_folder_is_an_error_and_a_hub_name_a_warning(tmp_path: Path) -> None:
    for path in (str(tmp_path / "gone"), "./gone", "gone"):
        assert "is no folder" in only_error(run(tmp_path, model__model=path))
    findings = check_run(run(tmp_path, model__model="Qwen/Qwen3-VL-8B"))
    assert [finding.where for finding in findings if finding.severity == "warning"] == ["model.model"]


def test_a_hub_name_whose_cached_tokenizer_lacks_the_coordinate_tokens_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run(tmp_path, model__model="owner/hf")
    repository = tmp_path / "models--owner--hf"
    snapshot = write_model(repository / "snapshots" / ("0" * 40), tokenizer__json={"model": {"vocab": {"a": 0}}})
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = only_error(config)
    assert message.startswith(f"model.model: {snapshot / 'tokenizer.json'}: the tokenizer lacks 1000 of 1000")
    assert message.endswith("rollmatch add-coordinates")
    write_model(snapshot)
    assert errors(config) == []


@pytest.mark.parametrize("named", ["checkpoint-4", "checkpoint-4/adapter"])
def test_a_checkpoint_of_a_run_in_the_models_place_is_one_error_that_names_its_export(
    tmp_path: Path, named: str
) -> None:
    checkpoint = tmp_path / "checkpoint-4"
    for folder in (checkpoint, checkpoint / "adapter"):
        folder.mkdir()
    write_model(checkpoint / "merged")
    assert f"whole model is {checkpoint / 'merged'}, write that" in only_error(
        run(tmp_path, model__model=str(tmp_path / named))
    )
    assert not errors(run(tmp_path, model__model=str(checkpoint / "merged")))


def test_a_length_beyond_the_models_positions_is_an_error(tmp_path: Path) -> None:
    config = run(tmp_path, custom__rollout_matching={"vllm": {"max_model_len": 8192}})
    assert only_error(config).startswith(
        f"{MATCHING}.vllm.max_model_len: is 8192, the model has max_position_embeddings 4096"
    )


@pytest.mark.parametrize(
    ("tuner", "words"),
    [
        ({"target_modules": ["q_proj"]}, None),
        ({"target_modules": ["qproj"]}, "tuner.target_modules: 'qproj' is no module"),
        ({"modules_to_save": ["lm_head"]}, None),
        ({"modules_to_save": ["score"]}, "tuner.modules_to_save: 'score' is no module"),
        ({"target_regex": r".*\.q_proj"}, None),
        ({"target_modules": ["q_proj", "lm_head"]}, "tuner.target_modules: ['q_proj', 'lm_head'] selects lm_head"),
        ({"target_regex": ".*(q_proj|head)"}, "tuner.target_regex: '.*(q_proj|head)' selects lm_head"),
        ({"target_modules": ["q_proj", "lm_head"], "freeze_llm": True}, None),
    ],
)
def test_adapters_must_find_their_modules(tmp_path: Path, tuner: dict[str, Any], words: str | None) -> None:
    changes = {f"tuner__{key}": value for key, value in tuner.items()}
    found = errors(run(tmp_path, tuner__train_type="lora", **changes))
    assert (found == []) if words is None else found[0].startswith(words)


def test_an_expression_that_matches_no_stored_name_is_a_warning(tmp_path: Path) -> None:
    findings = check_run(run(tmp_path, tuner__train_type="lora", tuner__target_regex="q_proj"))
    (found,) = [finding for finding in findings if finding.severity == "warning"]
    assert found.message.startswith("matches none of the checkpoint's 1 module names")


@pytest.mark.parametrize(
    ("tuner", "words"),
    [
        ({"train_type": "full"}, None),
        ({"train_type": "full", "freeze_llm": True}, "tuner.freeze_llm: leaves the coordinate tokens"),
        ({"train_type": "lora"}, "tuner.modules_to_save: leaves the coordinate tokens"),
        ({"train_type": "lora", "modules_to_save": ["embed_tokens"]}, "tuner.modules_to_save: leaves"),
        ({"train_type": "lora", "modules_to_save": ["embed_tokens", "lm_head"]}, None),
    ],
)
def test_coordinate_tokens_that_nobody_trained_must_be_reached(
    tmp_path: Path, tuner: dict[str, Any], words: str | None
) -> None:
    config = run(tmp_path, tuner=tuner, custom__rollout_matching={"prefix_policy": "matched"})
    write_model(tmp_path / "model", config__json={"model_type": "qwen3_vl", "tie_word_embeddings": False})
    (tmp_path / "model" / UNTRAINED).touch()
    found = [
        str(finding) for finding in check_run(config) if str(finding).startswith("tuner.") and "leaves" in str(finding)
    ]
    assert len(found) == (words is not None)
    assert all(message.startswith(words or "") for message in found)


def test_an_untrained_checkpoint_wants_settings_that_teach_the_format(tmp_path: Path) -> None:
    (write_model(tmp_path / "model") / UNTRAINED).touch()
    found = [each for each in check_run(run(tmp_path)) if each.where.startswith(MATCHING)]
    advice = {each.where: each.message.rsplit("; ", 1)[-1] for each in found}
    assert advice == {f"{MATCHING}.prefix_policy": "write matched", f"{MATCHING}.teach_format": "write true"}
    taught = run(tmp_path, custom__rollout_matching={"prefix_policy": "matched", "teach_format": True})
    assert not [each for each in check_run(taught) if each.where.startswith(MATCHING)]


def test_settings_that_name_files_are_looked_up(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = run(
        tmp_path,
        custom__system_prompt=str(tmp_path / "gone.txt"),
        deepspeed__config=str(tmp_path / "gone.json"),
        training__resume=str(tmp_path / "gone"),
        training__output_dir=str(tmp_path / "file" / "runs"),
    )
    assert [message.split(":")[0] for message in errors(config)] == [
        "custom.system_prompt",
        "deepspeed.config",
        "training.resume",
        "training.output_dir",
        "training.logging_dir",
    ]


def test_a_relative_run_folder_on_a_joined_cluster_is_a_warning(tmp_path: Path) -> None:
    findings = check_run(run(tmp_path, cluster__address="auto", training__output_dir="runs"))
    assert [finding.where for finding in findings if finding.severity == "warning"] == ["training.output_dir"]


def test_an_address_that_a_driver_cannot_join_is_an_error_before_the_start(tmp_path: Path) -> None:
    found = only_error(run(tmp_path, cluster__address="ray://head:10001"))
    assert found.startswith("cluster.address: must be auto or host:port of the head's GCS (such as head:6379), got ")
    for address in ("auto", "head:6379", "10.0.0.1:6379", "[fd00::1]:6379"):
        assert not errors(run(tmp_path, cluster__address=address))


def test_tensor_parallel_without_gpus_is_an_error(tmp_path: Path) -> None:
    config = run(tmp_path, custom__rollout_matching={"vllm": {"max_model_len": 1024, "tensor_parallel_size": 4}})
    assert only_error(config).startswith(f"{MATCHING}.vllm.tensor_parallel_size: is 4 but cluster.gpus_per_actor is 0")


def test_a_tracker_that_is_not_installed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    found = only_error(run(tmp_path, training__report_to=["wandb"]))
    assert (
        found == "training.report_to: wandb needs the package wandb, which is missing; install it, or remove the name"
    )


def test_what_no_package_brings_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("deploy.check.find_library", lambda name: None)
    assert [message.split(", and")[0] for message in errors(run(tmp_path))] == [
        "this machine: has no C++ compiler",
        "this machine: has no libnuma",
    ]
    assert not errors(run(tmp_path, cluster__address="auto"))


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.check._num_gpus", lambda: 1)
    monkeypatch.setattr("os.cpu_count", lambda: 8)


@pytest.mark.usefixtures("one_gpu")
def test_more_gpus_than_this_machine_has_are_an_error_where_the_run_has_a_cluster_of_its_own(tmp_path: Path) -> None:
    asked = {"cluster__gpus_per_actor": 1, "cluster__gpus_per_learner": 1}
    assert only_error(run(tmp_path, **asked)) == (
        "cluster.address: is null, so this machine with its 1 GPUs is the cluster: 2 GPU are wanted together and the 1 "
        "nodes have 1; ask for less in cluster.* and rollout.num_actors, or name a cluster"
    )
    ranks = run(tmp_path, cluster__gpus_per_learner=1, cluster__num_learners=2)
    assert "2 bundles of 1 CPU, 1 GPU for learners are wanted and the 1 nodes have room for 1;" in only_error(ranks)
    assert not errors(run(tmp_path, **asked, cluster__address="auto")), "that cluster's nodes say what they have"
    require_clean(run(tmp_path, **asked), learners=False)


@pytest.mark.usefixtures("one_gpu")
def test_a_label_that_no_private_cluster_has_is_an_error(tmp_path: Path) -> None:
    found = only_error(run(tmp_path, cluster__actor_labels={"pool": "rollout"}))
    assert "the 0 nodes with labels {'pool': 'rollout'} have room for 0" in found


@pytest.mark.usefixtures("one_gpu")
def test_more_cpus_than_cores_are_a_warning_with_both_numbers(tmp_path: Path) -> None:
    asked = {"cluster__cpus_per_actor": 6, "cluster__cpus_per_learner": 3}
    findings = check_run(run(tmp_path, **asked, rollout__max_staleness=1))
    (found,) = [finding for finding in findings if finding.severity == "warning"]
    assert str(found).startswith("cluster.cpus_per_actor: what works at a time asks for 9 CPUs, and this machine has 8")
    in_turns = check_run(run(tmp_path, **asked, rollout__max_staleness=0))
    assert not [finding for finding in in_turns if finding.severity == "warning"]


@pytest.mark.parametrize(("shown", "num"), [(None, 4), ("2,3", 2), ("", 0)])
def test_gpus_are_counted_as_a_local_ray_counts_them(
    monkeypatch: pytest.MonkeyPatch, shown: str | None, num: int
) -> None:
    manager = "ray._private.accelerators.nvidia_gpu.NvidiaGPUAcceleratorManager"
    monkeypatch.setattr(f"{manager}.get_current_node_num_accelerators", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if shown is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    assert _num_gpus() == num


def test_swap_space_is_accepted_with_a_warning(tmp_path: Path) -> None:
    config = run(tmp_path, custom__rollout_matching={"vllm": {"max_model_len": 1024, "swap_space": 4}})
    assert [str(each) for each in check_run(config) if f"{MATCHING}.vllm.swap_space" in str(each)]
    assert errors(config) == []


def test_findings_are_printed_with_errors_first() -> None:
    console = Console(width=120, file=io.StringIO())
    print_findings([note("b", "later"), error("a", "first")], console=console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.index("first") < text.index("later")
    assert "1 errors, 0 warnings, 1 notes" in text


def test_checking_imports_neither_torch_nor_an_engine() -> None:
    heavy = ("torch", "ray", "vllm", "transformers", "deepspeed")
    code = f"import sys, deploy.check, deploy.import_coco; print([name for name in {heavy} if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
