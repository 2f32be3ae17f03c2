"""The scripted engine keeps the contract of every engine, and its time runs on a clock that nobody waits for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from actors.scripted_engine import GPU_LIKE, Pace, ScriptedEngine
from actors.settings import DecodeSettings
from actors.simulated_answers import AnswerModel, lvis_like_record
from actors.simulation import CharCodec
from protocol.contracts import Record
from protocol.parsing import parse
from tests.actors import engine_contract as contract

CODEC = CharCodec()
ANSWERS = AnswerModel(recall=0.9)
LONG = 100_000
"""Tokens; more than any answer of these records."""


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """LVIS-like records, each with an image of its size."""
    made = []
    for index in range(5):
        path = tmp_path / f"{index}.png"
        Image.new("RGB", (64, 32)).save(path)
        made.append(replace(lvis_like_record(index), images=(str(path),), width=64, height=32))
    return made


@pytest.fixture
def subject(records: list[Record], tmp_path: Path) -> Callable[[DecodeSettings], contract.Subject]:
    large = tmp_path / "large.png"
    Image.new("RGB", (640, 640)).save(large)

    def build(decode: DecodeSettings) -> contract.Subject:
        engine = ScriptedEngine(
            CODEC,
            ANSWERS,
            tokens_per_step=50,
            max_new_tokens=decode.max_new_tokens if decode.temperature > 0 else LONG,
            max_num_seqs=3,
            repeat=decode.repeat,
            image_tokens=lambda request: request.record.width * request.record.height,
            max_model_len=2 * LONG,
        )
        return contract.Subject(
            engine=engine,
            codec=CODEC,
            records=records,
            publish=lambda version: contract.full_publish(version, {"w": np.full(4, version, np.float32)}),
            too_long=replace(records[0], source="large", images=(str(large),), width=640, height=640),
        )

    return build


@pytest.mark.parametrize("promise", contract.PROMISES, ids=lambda promise: promise.__name__)
def test_the_scripted_engine_promises(
    subject: Callable[[DecodeSettings], contract.Subject], promise: Callable[[contract.Subject], None]
) -> None:
    promise(subject(contract.GREEDY))


@pytest.mark.parametrize("promise", contract.SAMPLING, ids=lambda promise: promise.__name__)
def test_the_scripted_engine_samples_as_promised(
    subject: Callable[[DecodeSettings], contract.Subject], promise: Callable[[contract.Subject], None]
) -> None:
    promise(subject(contract.SAMPLED))


def test_the_guard_ends_scripted_answers(subject: Callable[[DecodeSettings], contract.Subject]) -> None:
    free = subject(contract.GREEDY)
    unwatched = contract.answer(free.engine, contract.requests(free.records))
    contract.the_guard_ends_an_answer_right_after_the_verdict(subject(contract.WATCHED), unwatched)


class Ticks:
    """A clock that only remembers how long it was asked to wait."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def simulated_seconds(num_records: int, **settings: int) -> tuple[float, int]:
    """Simulated seconds and tokens of a GPU-like engine that answers `num_records` LVIS-like records."""
    clock = Ticks()
    engine = ScriptedEngine(
        CODEC, AnswerModel(), tokens_per_step=64, max_new_tokens=8192, pace=GPU_LIKE, clock=clock, **settings
    )
    answers = contract.answer(engine, contract.requests([lvis_like_record(i) for i in range(num_records)]))
    return clock.now, sum(len(answer.token_ids) for answer in answers.values())


def test_a_batch_is_faster_than_its_requests_one_after_another() -> None:
    alone, together = simulated_seconds(16, max_num_seqs=1), simulated_seconds(16)
    assert alone[1] == together[1]
    assert alone[0] > 3 * together[0]


def test_steps_loads_and_prompts_cost_what_the_pace_says() -> None:
    clock = Ticks()
    pace = Pace(token_s=1.0, sequence_s=0.5, prefill_s=10.0, load_s=100.0)
    engine = ScriptedEngine(CODEC, lambda *_: "x" * 7, tokens_per_step=4, pace=pace, clock=clock)
    contract.answer(engine, contract.requests([lvis_like_record(0), lvis_like_record(1)]))
    # Two prompts of 10 s, then two steps of four tokens: each costs 1 s and 0.5 s for each of two sequences.
    assert clock.now == 2 * 10 + 2 * 4 * (1 + 2 * 0.5)
    engine.load_weights(*contract.full_publish(1, {"w": np.zeros(1, np.float32)}))
    assert clock.now == 36 + 100


def test_running_answers_go_on_with_loaded_weights_and_say_both_versions() -> None:
    engine = ScriptedEngine(CODEC, lambda *_: "x" * 50, tokens_per_step=10)
    engine.submit(request := contract.requests([lvis_like_record(0)])[0], engine.prepare(request))
    engine.step()
    engine.load_weights(*contract.full_publish(1, {"w": np.zeros(1, np.float32)}))
    (answer,) = contract.answer(engine, []).values()
    assert (answer.first_version, answer.last_version) == (0, 1)


def test_recall_and_precision_are_those_of_the_model() -> None:
    model = AnswerModel(recall=0.7, precision=0.5, jitter_bins=0)
    truths = predictions = matched = 0
    for request in contract.requests([lvis_like_record(index) for index in range(30)]):
        parsed = parse(CODEC.encode(model(request, 0)), CODEC)
        shapes = [truth.shape for truth in request.record.objects]
        truths += len(shapes)
        predictions += len(parsed.predictions)
        matched += sum(prediction.shape in shapes for prediction in parsed.predictions)
        assert not parsed.rejects
    assert matched / truths == pytest.approx(0.7, abs=0.05)
    assert matched / predictions == pytest.approx(0.5, abs=0.05)


def test_garbage_is_survived_by_the_parser_and_comes_as_often_as_asked() -> None:
    model = AnswerModel(garbage=0.5)
    clean = AnswerModel()
    asked = contract.requests([lvis_like_record(index) for index in range(60)])
    spoiled = [model(request, 0) != clean(request, 0) for request in asked]
    assert sum(spoiled) / len(spoiled) == pytest.approx(0.5, abs=0.2)
    for request in asked[:20]:
        text = model(request, 0)
        parsed = parse(CODEC.encode(text), CODEC)
        assert len(parsed.response_ids) == len(CODEC.encode(text))


def test_lvis_like_answers_are_long_with_a_longer_tail() -> None:
    counts = sorted(len(lvis_like_record(index).objects) for index in range(120))
    assert 40 < counts[60] < 65, "1,600 tokens are 52 boxes"
    assert counts[-1] > 200
    assert counts[-1] * 31 <= 11_000
