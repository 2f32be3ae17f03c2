"""`rollmatch replay`: every decision in the terminal, from a run's record or a file, without an engine or a cluster."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from actors.rollout_actor import load_processor
from deploy.cli import main
from deploy.file_codec import load_codec
from deploy.recorder import RecordedRollout, RolloutFile
from deploy.replay import read_answer, replay_answer
from deploy.replay_view import print_replay
from protocol.config import load_config
from protocol.contracts import GroundTruth, Shape
from protocol.replay import Mask
from protocol.serialization import assistant_text
from protocol.vocab import coord_token
from tests.deploy.rollouts import MODEL, ROOT, trace_of

CONFIG = ROOT / "configs" / "demo.yaml"
CAT = GroundTruth(index=1, desc="red circle", shape=Shape("bbox_2d", (100, 100, 300, 300)))
GHOST = GroundTruth(index=2, desc="green ghost", shape=Shape("bbox_2d", (800, 800, 900, 900)))
DOG = GroundTruth(index=2, desc="blue bar", shape=Shape("bbox_2d", (500, 500, 700, 700)))
BROKEN = ', "object_3": {"desc": "x", "bbox_2d": ["<|coord_1|>"]}}'


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that recorded one rollout: a match, a ghost, a reject, and a missed object."""
    monkeypatch.chdir(ROOT)
    trace = trace_of(17, assistant_text([CAT, GHOST])[:-1] + BROKEN, truths=(CAT, DOG))
    RolloutFile(tmp_path, 1 << 20).append(
        [RecordedRollout(step=3, time=1.0, actor="actor-0", latency_s=1, encoded=trace.encode())]
    )
    load_config(CONFIG).dump(tmp_path / "config.yaml")
    return tmp_path


def test_a_recorded_rollout_shows_every_decision(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--run", str(run_dir), "--key", "record=17/epoch=0"]) == 0
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "1 of 2 predictions match, 1 of 2 objects found, F1 0.500; 1 appended" in shown
    assert "object_3: geometry_form: bbox_2d has 1 values" in shown
    assert "differs from the run" not in shown


def test_another_gate_says_that_it_differs_from_the_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gate = "custom.extra.rollout_matching.maskiou_gate=1.0"
    moved = trace_of(18, assistant_text([CAT]), truths=(GroundTruth(index=1, desc="c", shape=_near()),))
    RolloutFile(run_dir, 1 << 20).append(
        [RecordedRollout(step=3, time=1, actor="a", latency_s=1, encoded=moved.encode())]
    )
    assert main(["replay", "--run", str(run_dir), "--key", "record=18", gate]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "0 of 1 predictions match" in shown
    assert "differs from the run, which matched 1 of 1 predictions" in shown


def test_another_prefix_policy_says_so_too(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = "custom.extra.rollout_matching.prefix_policy=rollout"
    assert main(["replay", "--run", str(run_dir), "--key", "record=17", policy]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "differs from the run, whose settings were others: prefix_len" in shown


def test_an_answer_of_which_nothing_is_kept_is_shown_as_it_is_taught(capsys: pytest.CaptureFixture[str]) -> None:
    taught = load_config(CONFIG, overrides=["custom.extra.rollout_matching.teach_format=true"])
    answer = trace_of(17, "a cat", truths=(CAT, DOG))
    seen = replay_answer(answer, taught, load_codec(MODEL))
    assert {token.mask for token in seen.tokens[:-1]} == {Mask.CE, Mask.COORD}
    assert "".join(token.text for token in seen.tokens).startswith('{"object_1": {"desc": "red circle"')
    assert seen.appended_keys == {0: "object_1", 1: "object_2"}
    print_replay(seen, taught, "test", answer, console=Console(width=160))
    shown = " ".join(capsys.readouterr().out.split())
    assert "prefix_policy matched · teach_format" in shown
    assert "differs from the run, whose settings were others: prefix_len 1 → 0" in shown


def _near() -> Shape:
    return Shape("bbox_2d", (110, 100, 300, 300))


def test_masks_are_coloured_and_moved_coordinates_show_their_target(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    near = GroundTruth(index=1, desc="red circle", shape=_near())
    answer = trace_of(17, assistant_text([near]), truths=(CAT, DOG))
    config = load_config(CONFIG)
    console = Console(width=160, force_terminal=True, color_system="truecolor")
    print_replay(replay_answer(answer, config, load_codec(MODEL)), config, "test", answer, console=console)
    text = capsys.readouterr().out
    assert "→100" in text
    assert "\x1b[1;32m" in text, "cross-entropy"
    assert "\x1b[1;36m" in text, "coordinates"
    assert "\x1b[2;35mblue" in text, "words of an appended description are ignored"


def test_an_answer_may_come_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "answer.json"
    truth = {"desc": "red circle", "bbox_2d": [coord_token(value) for value in CAT.shape.bins]}
    path.write_text(json.dumps({"text": assistant_text([CAT]), "objects": [truth]}))
    assert main(["replay", "--json", str(path), "--config", str(CONFIG), f"model.model={MODEL}"]) == 0
    assert "1 of 1 predictions match, 1 of 1 objects found, F1 1.000" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"objects": []}, "either text or token_ids"),
        ({"text": 5}, "text is 5, expected the answer as a string"),
        ({"token_ids": ["a"]}, "token_ids is ['a'], expected a list of whole numbers"),
        ({"text": "{}", "objects": [{"desc": "x"}]}, "objects[0] has neither bbox_2d nor poly"),
        ({"text": "{}", "objects": [{"desc": "x", "bbox_2d": [1, 2, 3]}]}, "objects[0].bbox_2d has 3 values"),
        ({"text": "{}", "objects": [{"desc": "x", "bbox_2d": [1, 2, 3, 1000]}]}, "expected a coordinate token or a"),
        ({"text": "{}", "objects": [{"desc": 7, "bbox_2d": [1, 2, 3, 4]}]}, "desc must be text"),
    ],
)
def test_an_answer_that_cannot_be_read_is_named(
    answer: dict[str, object], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(answer))
    assert main(["replay", "--json", str(path), "--config", str(CONFIG), f"model.model={MODEL}"]) == 2
    assert words in capsys.readouterr().err


def test_what_is_missing_is_named(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--run", str(run_dir)]) == 2
    assert "--key: is missing" in capsys.readouterr().err
    assert main(["replay", "--run", str(run_dir), "--key", "17"]) == 2
    assert "write record=17/epoch=0/rollout=0" in capsys.readouterr().err
    assert main(["replay", "--run", str(run_dir), "--key", "record=17", "model.model=nowhere"]) == 2
    assert "model.model: nowhere/tokenizer.json is missing" in capsys.readouterr().err


def test_the_file_codec_reads_and_writes_tokens_as_the_processor_does() -> None:
    from actors.codec import HubCodec

    hub, file = HubCodec(load_processor(MODEL).tokenizer), load_codec(MODEL)
    assert file.coord_bins == hub.coord_bins
    for text in (assistant_text([CAT, DOG]), "<|im_end|>\n", 'é "quoted\\" 猫 🐈', "  "):
        ids = hub.encode(text)
        assert file.encode(text) == ids
        assert [file.piece(each) for each in ids] == [hub.piece(each) for each in ids]


def test_replay_needs_no_engine_and_no_cluster() -> None:
    code = (
        "import sys, deploy.cli, deploy.replay, deploy.replay_view;"
        "print([name for name in ('torch', 'ray', 'vllm', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


def test_a_text_answer_is_read_into_tokens(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text(json.dumps({"text": "{}"}))
    codec = load_codec(MODEL)
    assert read_answer(path, codec).token_ids.tolist() == codec.encode("{}")
