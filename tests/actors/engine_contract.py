"""What every `RolloutEngine` promises, as checks that run against the scripted engine, vLLM and transformers alike.

A `Subject` says how to build the engine under test with given decoding and what to ask of it. `PROMISES` hold for an
engine that decodes greedily, `SAMPLING` for one that samples short answers; the guard's check compares an engine that
has the repeat guard with one that has not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from actors.engine import RolloutEngine
from actors.settings import DecodeSettings
from protocol.checksums import bucket_checksum
from protocol.contracts import Completion, Record, RequestKey, RolloutRequest
from protocol.errors import ImageError, PromptTooLongError, SyncError
from protocol.repeat_guard import RepeatSettings, num_tokens_at_verdict
from protocol.vocab import END_OF_TURN, TokenCodec
from protocol.weights import Bucket, TensorEntry, WeightsManifest

GREEDY = DecodeSettings(max_new_tokens=256, batch_size=4)
SAMPLED = DecodeSettings(max_new_tokens=36, temperature=1.0, batch_size=4)
TWO_KEYS = RepeatSettings(
    min_new_tokens=0, max_consecutive_token_repeats=0, ngram_size=0, ngram_repeats=2, max_object_keys=2
)
WATCHED = replace(GREEDY, repeat=TWO_KEYS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An engine under test."""

    engine: RolloutEngine
    codec: TokenCodec
    records: Sequence[Record]
    """At least four with images of the recorded size, prompts that fit, and at least two objects."""
    publish: Callable[[int], tuple[WeightsManifest, list[Bucket]]]
    """A full publish of a version whose weights answer otherwise than those of any other version."""
    too_long: Record
    """Its image alone leaves no room for an answer."""


def requests(records: Sequence[Record], seed: int = 0) -> list[RolloutRequest]:
    return [RolloutRequest(key=RequestKey(each.index), record=each, seed=seed + each.index) for each in records]


def answer(engine: RolloutEngine, asked: Sequence[RolloutRequest]) -> dict[RequestKey, Completion]:
    """Submits all, steps to the end."""
    for request in asked:
        engine.submit(request, engine.prepare(request))
    answers: dict[RequestKey, Completion] = {}
    while engine.num_unfinished:
        for completion in engine.step():
            assert completion.key not in answers, "answered twice"
            answers[completion.key] = completion
    return answers


def tokens(answers: dict[RequestKey, Completion]) -> dict[RequestKey, list[int]]:
    return {key: completion.token_ids.tolist() for key, completion in answers.items()}


def every_request_is_answered_once_with_its_prompt_and_tokens(subject: Subject) -> None:
    asked = requests(subject.records)
    answers = answer(subject.engine, asked)
    assert set(answers) == {request.key for request in asked}
    for completion in answers.values():
        assert completion.prompt_token_ids.dtype == completion.token_ids.dtype == np.int32
        assert len(completion.prompt_token_ids) > 0
        assert completion.finish_reason == "stop"
        assert subject.codec.piece(int(completion.token_ids[-1])) == END_OF_TURN
    assert subject.engine.step() == []


def greedy_answers_are_equal_in_every_repeat_and_batch(subject: Subject) -> None:
    records = subject.records
    whole = tokens(answer(subject.engine, requests(records)))
    assert tokens(answer(subject.engine, requests(records))) == whole
    assert tokens(answer(subject.engine, requests(records[::-1][:3]))).items() <= whole.items()
    assert tokens(answer(subject.engine, requests(records[:1]))).items() <= whole.items()


def an_unreadable_image_is_refused_and_the_others_are_answered(subject: Subject) -> None:
    good, other = subject.records[:2]
    gone = replace(other, images=(str(Path(other.images[0]).with_name("gone.png")),))
    text = replace(other, images=(str(Path(__file__)),))
    grown = replace(other, width=other.width + 32)
    for bad in (gone, text, grown):
        with pytest.raises(ImageError, match=bad.source):
            subject.engine.prepare(requests([bad])[0])
    assert len(answer(subject.engine, requests([good]))) == 1


def a_prompt_without_room_for_an_answer_is_refused(subject: Subject) -> None:
    with pytest.raises(PromptTooLongError, match=subject.too_long.source):
        answer(subject.engine, requests([subject.too_long]))
    assert subject.engine.num_unfinished == 0


def aborted_requests_are_forgotten(subject: Subject) -> None:
    for request in requests(subject.records):
        subject.engine.submit(request, subject.engine.prepare(request))
    subject.engine.abort_all()
    assert subject.engine.num_unfinished == 0
    assert subject.engine.step() == []
    assert len(answer(subject.engine, requests(subject.records))) == len(subject.records)


def loaded_weights_answer_from_then_on_and_say_so(subject: Subject) -> None:
    engine, asked = subject.engine, requests(subject.records)
    before = answer(engine, asked)
    version = engine.version + 1
    manifest, buckets = subject.publish(version)
    report = engine.load_weights(manifest, buckets)
    after = answer(engine, asked)

    assert (report.version, engine.version) == (version, version)
    assert report.bucket_checksums == manifest.bucket_checksums
    assert {(each.first_version, each.last_version) for each in before.values()} == {(version - 1, version - 1)}
    assert {(each.first_version, each.last_version) for each in after.values()} == {(version, version)}
    assert tokens(after) != tokens(before), "the new weights are what answers"
    assert [each.prompt_token_ids.tolist() for each in after.values()] == [
        before[key].prompt_token_ids.tolist() for key in after
    ]


def torn_weights_are_refused(subject: Subject) -> None:
    """Last: an engine that was offered them is restarted."""
    version = subject.engine.version
    manifest, buckets = subject.publish(version + 1)
    wrong = replace(manifest, bucket_checksums=("0" * 32,) * len(buckets))
    with pytest.raises(SyncError, match="checksum"):
        subject.engine.load_weights(wrong, buckets)
    assert subject.engine.version == version


def closing_twice_is_closing(subject: Subject) -> None:
    subject.engine.close()
    subject.engine.close()


def a_seed_gives_the_same_sample_whoever_shares_the_batch(subject: Subject) -> None:
    records = subject.records
    whole = tokens(answer(subject.engine, requests(records)))
    assert tokens(answer(subject.engine, requests(records))) == whole
    assert tokens(answer(subject.engine, requests(records[::-1][:3]))).items() <= whole.items()
    assert tokens(answer(subject.engine, requests(records, seed=1000))) != whole


def an_answer_ends_at_the_limit_of_new_tokens(subject: Subject) -> None:
    completions = answer(subject.engine, requests(subject.records)).values()
    assert "length" in {completion.finish_reason for completion in completions}
    for completion in completions:
        ended = subject.codec.piece(int(completion.token_ids[-1])) == END_OF_TURN
        assert completion.finish_reason == ("stop" if ended else "length")
        assert ended or len(completion.token_ids) == SAMPLED.max_new_tokens


def the_guard_ends_an_answer_right_after_the_verdict(subject: Subject, unwatched: dict[RequestKey, Completion]) -> None:
    """One decision for every backend: the tokens up to the verdict are those of an engine without the guard."""
    watched = answer(subject.engine, requests(subject.records))
    for key, free in unwatched.items():
        ids = free.token_ids.tolist()
        pieces = [(token, subject.codec.piece(token)) for token in ids]
        verdict = num_tokens_at_verdict(TWO_KEYS, free.prompt_token_ids.tolist(), pieces)
        expected = ids if verdict is None else [*ids[:verdict], ids[-1]]
        assert watched[key].token_ids.tolist() == expected
        assert (watched[key].finish_reason, watched[key].repeat_terminated) == ("stop", verdict is not None)
    assert any(completion.repeat_terminated for completion in watched.values()), "or this checks nothing"
    assert not any(completion.repeat_terminated for completion in unwatched.values())


def full_publish(version: int, tensors: Mapping[str, np.ndarray]) -> tuple[WeightsManifest, list[Bucket]]:
    """float32 tensors in one bucket."""
    bucket = tuple(value.reshape(-1).view(np.uint8) for value in tensors.values())
    entries = tuple(
        TensorEntry(name=name, dtype="float32", shape=value.shape, bucket=0, index=i, num_bytes=value.nbytes)
        for i, (name, value) in enumerate(tensors.items())
    )
    manifest = WeightsManifest(
        version=version,
        full=True,
        tensors=entries,
        bucket_checksums=(bucket_checksum(bucket),),
        changed_tensors=len(entries),
    )
    return manifest, [bucket]


PROMISES = (
    every_request_is_answered_once_with_its_prompt_and_tokens,
    greedy_answers_are_equal_in_every_repeat_and_batch,
    an_unreadable_image_is_refused_and_the_others_are_answered,
    a_prompt_without_room_for_an_answer_is_refused,
    aborted_requests_are_forgotten,
    loaded_weights_answer_from_then_on_and_say_so,
    torn_weights_are_refused,
    closing_twice_is_closing,
)
"""In this order: the later ones change the engine."""

SAMPLING = (a_seed_gives_the_same_sample_whoever_shares_the_batch, an_answer_ends_at_the_limit_of_new_tokens)
