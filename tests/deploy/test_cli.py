"""The command line: four ways to be wrong, one clear error each, and nothing was started."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from deploy.cli import _load, build_parser, main, parse
from deploy.demo.scenes import write_scenes
from deploy.signals import LEFT
from protocol.errors import Interrupted
from tests.deploy.runs import write_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments of a run that would be sound."""
    monkeypatch.chdir(ROOT)
    write_scenes(tmp_path, "train", 3, seed=1)
    config = str(ROOT / "configs" / "demo.yaml")
    data = [f"custom.train_jsonl={tmp_path / 'train.jsonl'}", "custom.val_jsonl=null", "training.eval_steps=null"]
    return ["train", "--config", config, *data, f"training.output_dir={tmp_path / 'runs'}"]


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    """The one error line of a run that was refused before anything was started."""
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert not (tmp_path / "runs").exists(), "not even the run's folder"
    ray = sys.modules.get("ray")
    assert ray is None or not ray.is_initialized()
    return printed.err


def test_a_typo_names_the_path_and_the_nearest_setting(
    train: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = refused([*train, "training.learning_rat=1"], capsys, tmp_path)
    assert error.startswith("rollmatch: training.learning_rat:")
    assert "training.learning_rate" in error


def test_a_broken_line_names_file_line_and_field(
    train: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    lines = (tmp_path / "train.jsonl").read_text().splitlines()
    row = json.loads(lines[1])
    row["objects"] = [{"desc": "red bar", "bbox_2d": [1, 2, 3]}]
    (tmp_path / "train.jsonl").write_text("\n".join([lines[0], json.dumps(row), lines[2]]) + "\n")

    error = refused(train, capsys, tmp_path)
    assert "train.jsonl:2: objects[0].bbox_2d has 3 values, expected 4" in error


def test_a_missing_image_names_the_record_and_the_file(
    train: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "train" / "000002.png").unlink()
    error = refused(train, capsys, tmp_path)
    assert "train.jsonl:3" in error
    assert "000002.png is missing" in error


def test_an_unknown_metric_for_the_best_model_is_refused_with_the_nearest(
    train: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = refused([*train, "training.metric_for_best_model=eval_f1"], capsys, tmp_path)
    assert error.startswith("rollmatch: training.metric_for_best_model:")
    assert "eval_rollout_f1" in error


def test_the_resume_flag_sets_training_resume(
    train: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = refused([*train, "--resume", str(tmp_path / "nowhere")], capsys, tmp_path)
    assert error.startswith("rollmatch: training.resume:")
    assert "nowhere is no folder" in error


def test_overrides_may_stand_between_options(
    train: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = refused([*train, "training.seed=x", "--verbose", "training.learning_rat=1"], capsys, tmp_path)
    assert "2 settings are wrong" in error
    with pytest.raises(SystemExit, match="2"):
        main([*train, "training.seed=1", "--fast"])
    assert "unrecognized arguments: --fast" in capsys.readouterr().err


def test_the_debug_flag_takes_the_short_variant(
    train: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = refused([*train, "--debug", "debug.train_sample_limit=0"], capsys, tmp_path)
    assert "\ndebug.train_sample_limit: must be > 0" in error
    (tmp_path / "file").touch()
    error = refused([*train, "--debug", f"debug.output_dir={tmp_path / 'file'}"], capsys, tmp_path)
    assert "\ntraining.output_dir: " in error, "the debug section's folder is the run's"


def test_every_command_has_a_line_of_help() -> None:
    text = build_parser().format_help()
    runs = ("train", "evaluate", "check", "plan", "render", "submit")
    for name in (*runs, "import-coco", "add-coordinates", "replay", "report", "watch"):
        assert re.search(rf"^    {name}\s+\w", text, re.MULTILINE), name


RUN_FILES = sorted(set((ROOT / "configs").glob("*.yaml")) - {ROOT / "configs" / "runtime_env.yaml"})


@pytest.mark.parametrize("path", RUN_FILES, ids=lambda path: path.name)
def test_every_shipped_configuration_loads(path: Path) -> None:
    from protocol.config import load_config

    assert load_config(path).run_dir.name


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        (OSError(28, "No space left on device"), 1, "No space left on device; is a disk full"),
        (SystemExit(15), 130, "rollmatch: interrupted"),
        (KeyboardInterrupt(), 130, "rollmatch: interrupted"),
        (KeyboardInterrupt(LEFT), 130, "rollmatch: left at once, without a checkpoint\n"),
        (Interrupted("asked to stop at step 2"), 130, "go on with: the same command and --resume auto"),
    ],
)
def test_a_full_disk_and_every_kind_of_interruption_end_in_a_sentence(
    train: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    words: str,
) -> None:
    def fail(_: object) -> NoReturn:
        raise raised

    monkeypatch.setattr("deploy.launch.train", fail)
    assert main(train) == code
    assert words in capsys.readouterr().err


def test_a_run_ends_with_its_table_its_findings_and_one_line_of_json(
    train: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = write_run(tmp_path / "one", truncated=0.37)
    scores = {"before": {"eval_rollout_f1": 0.5}, "after": {"eval_rollout_f1": 0.7}, "versions_used": [0]}
    monkeypatch.setattr("deploy.launch.train", lambda _: {"run": str(run), **scores})
    assert main(train) == 0
    printed = capsys.readouterr().out
    table, finding, after = printed.partition("act: Truncated rollouts. Truncation rose from 0 % to 37 %")
    assert "0.5000" in table
    assert finding
    assert "F1 rises" not in printed
    assert json.loads(after.splitlines()[-1]) == {"run": str(run)}


def test_the_short_variant_leaves_what_the_command_line_says(train: list[str]) -> None:
    found = _load(parse([*train, "--debug", "custom.train_sample_limit=8"]))
    assert found.custom.train_sample_limit == 8
    assert found.training.output_dir == train[-1].partition("=")[2]


@pytest.mark.parametrize("path", ["runs/my run #2/checkpoint-4", "runs/caf\u00e9 \U0001f600/checkpoint-4"])
def test_a_checkpoints_path_is_no_yaml(train: list[str], path: str) -> None:
    assert _load(parse([*train, "--resume", path])).training.resume == path
