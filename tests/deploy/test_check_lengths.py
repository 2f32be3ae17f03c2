"""Token lengths in `rollmatch check`: counted with the demo's tokenizer, bounded from below without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from actors.codec import ChatFrame
from deploy import check_lengths
from deploy.check import check_run
from deploy.check_lengths import TokenCounter
from deploy.file_codec import load_codec
from deploy.findings import Finding
from protocol.prompts import default_prompts
from protocol.records import RecordFile
from protocol.serialization import assistant_text
from tests.deploy.test_check import MATCHING, record, run, write_data, write_model

MODEL = Path(__file__).parents[2] / "deploy" / "demo" / "model"
IMAGE_TOKENS = 4
"""Of 64 x 64 pixels."""


def crowd(count: int) -> dict[str, Any]:
    objects = [{"bbox_2d": [at, at, at + 1, at + 1], "desc": f"red cell {at}"} for at in range(count)]
    return record(objects=objects)


def found(tmp_path: Path, *lines: dict[str, Any], model: str = str(MODEL), **changes: Any) -> list[Finding]:
    prompts = {"custom__system_prompt": "Answer.", "custom__user_prompt": "List all."}
    config = run(tmp_path, model__model=model, **prompts, **changes)
    write_data(tmp_path, "train.jsonl", *lines)
    return check_run(config)


def warnings(findings: list[Finding]) -> list[str]:
    return [str(finding) for finding in findings if finding.severity == "warning"]


def test_a_record_is_counted_as_the_tokenizer_and_the_chat_template_write_it(tmp_path: Path) -> None:
    system, user = default_prompts("sorted")
    frame, codec = ChatFrame(AutoProcessor.from_pretrained(MODEL), system, user), load_codec(str(MODEL))
    polygon = {"poly": [1, 2, 300, 4, 500, 600], "desc": "kite,\u00e4"}
    path = write_data(tmp_path, "t.jsonl", crowd(12), record(objects=[]), record(objects=[polygon]))
    counter = TokenCounter(codec, system=system, user=user)
    for each in RecordFile(path):
        answer = codec.encode(assistant_text(each.objects))
        prompt, counted, row = counter.measure(each, IMAGE_TOKENS)
        assert prompt == len(codec.encode(frame.prompt_text)) - 1 + IMAGE_TOKENS  # one <|image_pad|> for all
        assert counted == len([*answer, frame.suffix_ids[0]])
        assert row == prompt + len([*answer, *frame.suffix_ids]) + 1  # and the seam


def test_a_row_without_a_match_is_as_long_as_it_is_trained() -> None:
    """The prefix `{` is encoded by itself, and the rest behind it."""
    codec = load_codec(str(MODEL))
    whole = '{"object_1": {"desc": "cat", "bbox_2d": ["<|coord_1|>", "<|coord_2|>", "<|coord_3|>", "<|coord_4|>"]}}'
    assert len([*codec.encode("{"), *codec.encode(whole[1:])]) == len(codec.encode(whole)) + check_lengths._SEAM


def test_the_spread_of_lengths_is_a_note(tmp_path: Path) -> None:
    (text,) = [str(each) for each in found(tmp_path, *[crowd(1)] * 3, crowd(9)) if "an answer with" in each.message]
    counter = TokenCounter(load_codec(str(MODEL)))
    few, many = (counter.measure(each, 0).answer for each in list(RecordFile(tmp_path / "train.jsonl"))[2:])
    assert few > 25
    assert text.startswith("custom.train_jsonl: of 4 records an answer with all objects has")
    assert f"{few} (p50), {many} (p99), {many} (longest) tokens" in text


def test_answers_that_no_rollout_can_write_are_counted(tmp_path: Path) -> None:
    (text,) = warnings(found(tmp_path, *[crowd(1)] * 3, crowd(9), custom__rollout_matching={"max_new_tokens": 100}))
    assert text.startswith(
        f"{MATCHING}.max_new_tokens: is 100, and 25 % of the answers in {tmp_path}/train.jsonl (1 of 4 that were "
    )
    needed = int(text.split("raise it, ")[1].split()[0])
    assert not warnings(found(tmp_path, *[crowd(9)] * 4, custom__rollout_matching={"max_new_tokens": needed}))
    assert warnings(found(tmp_path, *[crowd(9)] * 4, custom__rollout_matching={"max_new_tokens": needed - 1}))


def test_answers_behind_the_models_length_are_counted(tmp_path: Path) -> None:
    limits = {"max_new_tokens": 299, "vllm": {"max_model_len": 300}}
    assert not warnings(found(tmp_path, *[crowd(7)] * 4, custom__rollout_matching=limits))
    texts = warnings(found(tmp_path, *[crowd(8)] * 4, custom__rollout_matching=limits))
    assert texts[0].startswith(f"{MATCHING}.vllm.max_model_len: is 300, and 100 % of the prompts with their answer")


def test_rows_that_would_be_quarantined_are_counted(tmp_path: Path) -> None:
    (text,) = warnings(found(tmp_path, *[crowd(1)] * 3, crowd(9), global_max_length=200))
    assert text.startswith("global_max_length: is 200, and 25 % of the training rows in")
    assert "they would be quarantined" in text
    (raised,) = [str(each) for each in found(tmp_path, *[crowd(9)] * 4, global_max_length=200) if each.is_error]
    assert raised.startswith("global_max_length: is 200, and no record of")


def test_more_rows_that_would_be_quarantined_than_the_limit_are_said_before_the_run_ends_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.check_data.MAX_LINES", 4)  # the share is that of these, the records all that there are

    def told(most: int, **changes: Any) -> list[str]:
        lines = [*[crowd(1)] * 3, crowd(9)] * 5
        return warnings(found(tmp_path, *lines, global_max_length=200, quarantine__max_records=most, **changes))

    length, limit = told(4)
    assert length.startswith("global_max_length: ")
    assert limit == (
        "quarantine.max_records: is 4, and about 5 of the 20 records that the run asks for would be quarantined for "
        "their length, which would end it: raise global_max_length, or this limit"
    )
    assert len(told(5)) == 1
    assert len(told(4, training__max_steps=4)) == 1, "16 records are asked for"
    assert len(told(4, template__truncation_strategy="raise")) == 1, "the first one ends the run, whatever the limit"


def test_a_file_of_many_descriptions_is_counted_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_lengths, "MANY_PIECES", 8)
    monkeypatch.setattr(check_lengths, "SAMPLE", 2)
    sampled = found(tmp_path, *[crowd(9)] * 4)
    assert any("of 2 records (a sample of 4, of every size) an answer" in each.message for each in sampled)
    assert any("of 4 records an answer" in each.message for each in found(tmp_path, *[crowd(1)] * 4))


def test_a_sample_holds_the_largest_record_and_dense_ones_by_their_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second line from the first would see neither."""
    monkeypatch.setattr(check_lengths, "MANY_PIECES", 8)
    monkeypatch.setattr(check_lengths, "SAMPLE", 4)
    limit = {"custom__rollout_matching": {"max_new_tokens": 100}}
    (one,) = warnings(found(tmp_path, *[crowd(1)] * 7, crowd(9), **limit))
    assert "25 % of the answers" in one
    largest = TokenCounter(load_codec(str(MODEL))).measure(list(RecordFile(tmp_path / "train.jsonl"))[7], 0).answer
    assert one.endswith(f"raise it, {largest} would fit all that were counted")
    (half,) = warnings(found(tmp_path, *[crowd(1), crowd(8)] * 3, crowd(1), crowd(9), **limit))
    assert "50 % of the answers" in half
    wordy = record(objects=[{"bbox_2d": [1, 1, 2, 2], "desc": " ".join(f"cell{at}" for at in range(60))}])
    assert warnings(found(tmp_path, *[crowd(n) for n in (1, 2, 3, 4, 2, 2, 2)], wordy, **limit))


def test_without_a_tokenizer_the_image_and_the_coordinates_are_counted(tmp_path: Path) -> None:
    limits = {"max_new_tokens": 3, "vllm": {"max_model_len": 4}}
    raised = [str(each) for each in found(tmp_path, model="org/name", custom__rollout_matching=limits) if each.is_error]
    assert "the image alone costs 4 tokens, vllm.max_model_len is 4" in raised[0]
    roomy = found(tmp_path, model="org/name", custom__rollout_matching={"max_new_tokens": 3})
    assert any("lower bounds, for want of a tokenizer: of 4 records" in each.message for each in roomy)
    assert warnings(roomy)[0].startswith(f"{MATCHING}.max_new_tokens: is 3, and 100 % of the answers")
    assert "raise it, at least to 4" in warnings(roomy)[0]
    short = [str(each) for each in found(tmp_path, model="org/name", global_max_length=7) if each.is_error]
    assert short[0].startswith("global_max_length: is 7, and no record of")


def test_a_tokenizer_that_cannot_be_opened_is_a_warning(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "other")
    broken = json.loads((folder / "tokenizer.json").read_text())
    broken["model"]["merges"] = 3
    (folder / "tokenizer.json").write_text(json.dumps(broken))
    (text,) = warnings(found(tmp_path, *[crowd(1)] * 4, model=str(folder)))
    assert text.startswith(f"model.model: {folder}/tokenizer.json cannot be opened")
