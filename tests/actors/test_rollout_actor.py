"""One actor with a scripted engine: what leaves it, in which order, and what never does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actors.engine import RolloutEngine
from actors.outcome import Outcome
from actors.rollout_actor import RolloutActor, load_processor
from actors.scripted_engine import ScriptedEngine
from actors.settings import ActorSettings, DecodeSettings, EngineSettings
from protocol.contracts import EVALUATION_EPOCH, GroundTruth, Record, RequestKey, RolloutRequest, Shape
from protocol.errors import ContractError, EngineError, ImageError
from protocol.matching import MatchSettings, match
from protocol.segments import Segment
from protocol.serialization import assistant_text
from protocol.targets import TargetSettings
from protocol.traces import RolloutTrace
from protocol.unread import AnyRequest, RecordLine, UnreadRequest

MODEL = str(Path(__file__).resolve().parents[2] / "deploy" / "demo" / "model")
CAT = GroundTruth(index=1, desc="red circle", shape=Shape("bbox_2d", (100, 100, 300, 300)))
DOG = GroundTruth(index=2, desc="blue bar", shape=Shape("bbox_2d", (500, 500, 700, 700)))


def request(record: int, *, epoch: int = 0, min_version: int = 0) -> RolloutRequest:
    data = Record(index=record, source=f"t:{record + 1}", images=("x.png",), width=8, height=8, objects=(CAT, DOG))
    return RolloutRequest(key=RequestKey(record, epoch), record=data, seed=0, min_version=min_version)


@pytest.fixture
def actor() -> Callable[..., RolloutActor]:
    def build(script: Callable[[RolloutRequest, int], str], max_length: int = 4096) -> RolloutActor:
        settings = ActorSettings(
            engine=EngineSettings(model=MODEL, dtype="float32", max_model_len=512, num_threads=1, on_cpu=True),
            decode=DecodeSettings(max_new_tokens=256),
            system_prompt="s",
            user_prompt="u",
            match=MatchSettings(),
            target=TargetSettings(max_length=max_length),
        )
        made = RolloutActor(settings)
        made._engine = engine = Wrapped(script)
        made.start(None)
        made.loop.ask(lambda _: engine.attach(made))
        return made

    return build


class Wrapped:
    """A scripted engine that is built once the actor has read its tokenizer."""

    def __init__(self, script: Callable[[RolloutRequest, int], str]) -> None:
        self._script = script
        self._engine: RolloutEngine | None = None
        self.version = 0

    def attach(self, actor: RolloutActor) -> None:
        self._engine = ScriptedEngine(actor._codec, self._script)

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)


def answers(actor: RolloutActor, requests: Sequence[AnyRequest]) -> tuple[tuple[Segment, ...], tuple[Outcome, ...]]:
    """Segments and outcomes of the one group that answers all of them."""
    actor.submit(requests)
    segments, report = actor.collect()
    return segments, report.outcomes


def finds_the_cat(_request: RolloutRequest, _version: int) -> str:
    return assistant_text([CAT])


def test_a_group_holds_each_segment_at_the_place_of_its_outcome(actor: Callable[..., RolloutActor]) -> None:
    segments, outcomes = answers(actor(finds_the_cat), [request(0), request(1)])

    assert {outcome.key.record for outcome in outcomes} == {0, 1}
    for segment, outcome in zip(segments, outcomes, strict=True):
        assert outcome.key == segment.key
        assert outcome.meta is not None
        assert outcome.meta.length == len(segment.input_ids)
        assert (outcome.meta.stats.matched_pairs, outcome.meta.stats.fn_appended) == (1, 1)


def test_the_target_is_the_rollout_plus_the_missed_object_plus_the_end_of_turn(
    actor: Callable[..., RolloutActor],
) -> None:
    made = actor(finds_the_cat)
    (segment,), _ = answers(made, [request(0)])
    text = load_processor(MODEL).tokenizer.decode(segment.input_ids[segment.prompt_len :])

    assert text == assistant_text([CAT, DOG]) + "<|im_end|>\n"
    supervised = np.flatnonzero(segment.labels != -100)
    assert segment.input_ids[supervised[-1]] == made._frame.suffix_ids[0], "the end of turn is the last label"


def test_an_evaluation_request_yields_statistics_and_no_segment(actor: Callable[..., RolloutActor]) -> None:
    segments, (outcome,) = answers(actor(finds_the_cat), [request(0, epoch=EVALUATION_EPOCH)])

    assert segments == ()
    assert outcome.meta is None
    assert outcome.evaluated is not None
    assert (outcome.evaluated.desc_pairs_total, outcome.evaluated.desc_exact_ok) == (1, 1)


def test_what_an_answer_is_counted_as_leaves_the_actor_with_it(actor: Callable[..., RolloutActor]) -> None:
    again = replace(CAT, index=2)
    made = actor(lambda *_: assistant_text([CAT, again, replace(DOG, index=3, desc="green bar")]))
    made._settings = replace(made._settings, decode=replace(made._settings.decode, mode="beam"))
    _, (trained,) = answers(made, [request(0)])
    _, (outcome,) = answers(made, [request(0, epoch=EVALUATION_EPOCH)])

    stats = outcome.evaluated
    assert stats is not None
    assert trained.meta is not None
    assert trained.meta.stats == stats, "an evaluation counts what training counts"
    assert (stats.valid_predictions, stats.matched_pairs, stats.gt_objects) == (3, 2, 2)
    assert (stats.duplicates, stats.fn_appended, stats.matched_maskiou_sum) == (1, 0, 2.0)
    assert (stats.desc_pairs_total, stats.desc_exact_ok) == (2, 1)
    assert (stats.decode_mode, stats.repeat_terminated) == ("beam", 0)
    assert outcome.new_tokens == stats.rollout_len + 1, "the end of turn is generated as well"
    assert outcome.finish_reason == "stop"


def test_a_target_that_is_too_long_is_a_failure_with_its_lengths_not_a_truncated_segment(
    actor: Callable[..., RolloutActor],
) -> None:
    segments, (outcome,) = answers(actor(finds_the_cat, max_length=20), [request(0)])

    assert segments == ()
    assert outcome.meta is None
    assert outcome.failure is not None
    assert outcome.failure.startswith("Oversize")
    assert "limit 20" in outcome.failure


def test_an_answer_that_writes_an_images_placeholder_is_no_target(actor: Callable[..., RolloutActor]) -> None:
    made = actor(lambda *_: assistant_text([CAT]).replace("circle", "circle <|image_pad|>"))
    segments, (outcome,) = answers(made, [request(0)])

    assert segments == ()
    assert outcome.failure is not None
    assert outcome.failure.startswith("Placeholder: ")
    assert answers(made, [request(0, epoch=EVALUATION_EPOCH)])[1][0].evaluated is not None

    made._settings = replace(made._settings, target=replace(made._settings.target, prefix_policy="matched"))
    (segment,), _ = answers(made, [request(0)])
    assert not np.isin(segment.input_ids[segment.prompt_len :], made._placeholder_ids).any()


@pytest.mark.parametrize("bug", [ZeroDivisionError("no predictions"), ContractError("no predictions")])
def test_a_bug_that_one_answer_meets_costs_its_record_and_no_engine(
    bug: Exception, actor: Callable[..., RolloutActor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def trips(predictions: Any, truths: Any, settings: Any) -> Any:
        if not predictions:
            raise bug
        return match(predictions, truths, settings)

    monkeypatch.setattr("actors.rollout_actor.match", trips)
    made = actor(lambda asked, _: "{}" if asked.key.record == 0 else assistant_text([CAT]))
    segments, outcomes = answers(made, [request(0), request(1)])
    assert [segment.key.record for segment in segments] == [1]
    (failed,) = [outcome for outcome in outcomes if outcome.key.record == 0]
    assert failed.failure is not None
    assert failed.failure.startswith("AnswerError: ")
    assert repr(bug) in failed.failure
    assert failed.new_tokens > 0, "it was generated"


def test_an_image_that_cannot_be_read_fails_alone(actor: Callable[..., RolloutActor]) -> None:
    made = actor(finds_the_cat)
    prepare = made._engine.prepare  # type: ignore[union-attr]

    def refuse_first(asked: RolloutRequest) -> Any:
        if asked.key.record == 0:
            raise ImageError("t:1: cannot read image x.png")
        return prepare(asked)

    made._engine.prepare = refuse_first  # type: ignore[method-assign, union-attr]
    segments, (failed, answered) = answers(made, [request(0), request(1)])

    assert [segment.key for segment in segments] == [answered.key]
    assert failed.failure == "ImageError: t:1: cannot read image x.png"
    assert answered.meta is not None


def test_a_line_that_is_no_record_fails_alone_with_its_place(actor: Callable[..., RolloutActor]) -> None:
    line = RecordLine(
        text=b'{"images": ["x.png"], "width": 8, "height": 8, "objects": [{"desc": "cat", "bbox_2d": [1, 2, 3]}]}',
        index=16,
        source="train.jsonl:17",
        root="/",
        confined_to=None,
        ordering="sorted",
        seed=0,
        epoch=0,
    )
    broken = UnreadRequest(key=RequestKey(16), line=line, seed=0)
    segments, outcomes = answers(actor(finds_the_cat), [request(0), broken])

    failures = {outcome.key.record: outcome.failure for outcome in outcomes}
    assert [segment.key.record for segment in segments] == [0]
    assert failures[0] is None
    assert (
        failures[16] == "RecordError: train.jsonl:17: objects[0].bbox_2d has 3 values, expected 4; write x1, y1, x2, y2"
    )


def test_an_engine_older_than_the_request_allows_is_a_contract_error(actor: Callable[..., RolloutActor]) -> None:
    with pytest.raises(ContractError, match="version 0, 3 or newer"):
        answers(actor(finds_the_cat), [request(0, min_version=3)])


def test_the_chat_frame_puts_the_image_before_the_text(actor: Callable[..., RolloutActor]) -> None:
    text = actor(finds_the_cat)._frame.prompt_text
    assert text.index("<|image_pad|>") < text.index("u<|im_end|>")
    assert text.endswith("<|im_start|>assistant\n")


def test_a_trace_leaves_the_actor_only_where_settings_and_request_ask_for_it(
    actor: Callable[..., RolloutActor],
) -> None:
    made = actor(finds_the_cat)
    _, (without,) = answers(made, [request(0)])
    made._settings = replace(made._settings, trace=True)
    _, (traced,) = answers(made, [request(1)])
    _, (evaluated,) = answers(made, [request(0, epoch=EVALUATION_EPOCH)])
    _, (untraced,) = answers(made, [replace(request(0, epoch=EVALUATION_EPOCH), traced=False)])

    assert without.trace is None
    assert untraced.trace is None
    assert RolloutTrace.decode(evaluated.trace).key.evaluates
    trace = RolloutTrace.decode(traced.trace)
    assert [(pair.prediction, pair.ground_truth) for pair in trace.pairs] == [(0, 0)]
    assert made._codec.encode(assistant_text([CAT]) + "<|im_end|>") == trace.token_ids.tolist()


def test_a_request_that_cannot_even_be_read_fails_the_collecting_call_as_its_hand_over_returns_nothing(
    actor: Callable[..., RolloutActor],
) -> None:
    class Broken(UnreadRequest):
        def read(self) -> RolloutRequest:
            raise MemoryError("no room for the line")

    line = RecordLine(text=b"{}", index=0, source="t:1", root="", confined_to=None, ordering="sorted", seed=0, epoch=0)
    with pytest.raises(EngineError, match=r"cannot be read: MemoryError\('no room for the line'\)"):
        answers(actor(finds_the_cat), [Broken(key=RequestKey(0), line=line, seed=0)])
