"""One rollout actor: engine → parse → match → target, handed over in groups of finished rollouts.

    driver ──submit──► [engine_loop] ──► answers ──► parse, match, target ──collect──► (segments, outcomes)

`submit` hands requests to the engine's running batch and returns at once. `collect` returns the next group of answers
(`actors.answers` says when a group is complete): two objects, the segments of the group and a report with their
outcomes. The driver owns both, so they outlive this process, and it fetches only the second. Two objects of one call,
because they arrive together or not at all.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
import ray

from actors.answers import Answers
from actors.codec import ChatFrame, HubCodec
from actors.desc_monitor import DescMonitor
from actors.engine import EngineProgress, LoadReport, RolloutEngine
from actors.engine_loop import Answer, EngineLoop, InFlight
from actors.engines import build_engine
from actors.outcome import Group, Outcome, Report
from actors.settings import ActorSettings
from protocol.contracts import Completion, RolloutRequest
from protocol.errors import ContractError, EngineError, RecordError
from protocol.matching import count_duplicates, match
from protocol.parsing import parse
from protocol.segments import Segment, SegmentMeta, SegmentStats
from protocol.targets import Target, build_target
from protocol.traces import RolloutTrace
from protocol.unread import AnyRequest
from protocol.vocab import TokenCodec
from protocol.weights import Bucket, WeightsManifest

THREADS = {"control": 4, "collect": 1}
"""Of an actor's process, by what they serve: starts, loads and heartbeats never wait behind the collecting call."""
PLACEHOLDERS = ("<|image_pad|>", "<|video_pad|>")
"""Stand for an image's tokens in a prompt; a sampled answer may hold one as well."""

WHY_NO_TARGET = "no target can be made of its answer, which is a bug of ours; the actor's log has the traceback"

log = logging.getLogger("rollmatch.actor")

Method = TypeVar("Method", bound=Callable[..., Any])


def served(**options: Any) -> Callable[[Method], Method]:
    """`ray.method`, with a type: how Ray serves calls of this method."""
    return ray.method(**options)  # type: ignore[no-any-return]


def load_processor(model: str) -> Any:
    """The checkpoint's own processor, offline."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(model, local_files_only=True)


class RolloutActor:
    """Plain class; `pool` turns it into a Ray actor. `engine` may be given, for tests without vLLM."""

    def __init__(self, settings: ActorSettings, engine: RolloutEngine | None = None) -> None:
        self._settings = settings
        self._engine = engine
        self._answers = Answers()
        self._placeholder_ids: Sequence[int] = ()

    @served(concurrency_group="control")
    def start(self, warmup: RolloutRequest | None, name: str = "") -> int:
        """Builds the engine and answers one request, which warms caches up; returns the process id. Slow: the caller
        sets the deadline.

        `name`: of its slot in the pool, for its outcomes.
        """
        self._name = name
        self._descs = DescMonitor(self._settings.descs)
        self.loop = EngineLoop(self._open(), self._settings.decode.batch_size)
        self.loop.start()
        if warmup is not None:
            self.submit([warmup])
            self.collect()
        return os.getpid()

    @served(num_returns=0, enable_task_events=False)
    def submit(self, requests: Sequence[AnyRequest]) -> None:
        """Hands requests to the engine that the driver needs together; each is answered once, in some later group.

        The call itself returns nothing, which would wake the driver: what goes wrong here is an answer as well.
        """
        self._answers.expect(requests)
        read = []
        for request in requests:
            try:
                read.append(request.read())
            except RecordError as error:
                self._answers.put(request, error)
            except Exception as error:
                self._answers.put(request, EngineError(f"{request.key}: cannot be read: {error!r}"))
        self.loop.submit(read, self._answers.put)

    @served(concurrency_group="collect", num_returns=2, enable_task_events=False)
    def collect(self, hold: bool = False) -> Group:
        """The next group of finished requests, at least one, in order of completion.

        `hold`: the driver has no other request for this actor, so answers may wait for each other. EngineError when the
        engine failed; what ended before its failure is the group before.
        """
        segments: list[Segment] = []
        outcomes: list[Outcome] = []
        for answered, latency_s in self._answers.take_group(hold):
            segment, outcome = self._outcome(answered.request, answered.answer)
            outcomes.append(replace(outcome, latency_s=latency_s, actor=self._name))
            segments += [segment] if segment is not None else []
        return tuple(segments), Report(outcomes=tuple(outcomes), progress=self.loop.progress)

    @served(concurrency_group="control")
    def load_weights(self, published: tuple[WeightsManifest, list[Any]], in_flight: InFlight) -> LoadReport:
        """Fetches the buckets (zero-copy where they are local) and loads them. SyncError when they do not attest."""
        manifest, refs = published
        started = time.monotonic()
        buckets: list[Bucket] = ray.get(refs)
        fetch_s = time.monotonic() - started
        return replace(self.loop.load_weights(manifest, buckets, in_flight), fetch_seconds=fetch_s)

    @served(concurrency_group="control")
    def sleep(self) -> None:
        """Leaves the device to others until the next request or publish."""
        self.loop.sleep()

    @served(concurrency_group="control", enable_task_events=False)
    def progress(self) -> EngineProgress:
        """The heartbeat."""
        return self.loop.progress

    def close(self) -> None:
        self.loop.close()

    def _open(self) -> Callable[[], RolloutEngine]:
        """Reads the checkpoint's processor; the engine itself is built in its own thread."""
        processor = load_processor(self._settings.engine.model)
        self._codec: TokenCodec = HubCodec(processor.tokenizer)
        self._frame = ChatFrame(processor, self._settings.system_prompt, self._settings.user_prompt)
        self._suffix_ids: Sequence[int] = self._frame.suffix_ids
        vocabulary = processor.tokenizer.get_vocab()
        self._placeholder_ids = [vocabulary[token] for token in PLACEHOLDERS if token in vocabulary]
        return lambda: self._engine or build_engine(self._settings, self._frame, self._codec, processor)

    def _outcome(self, request: AnyRequest, answer: Answer | RecordError) -> tuple[Segment | None, Outcome]:
        if not isinstance(answer, Completion):
            return None, Outcome(key=request.key, failure=f"{type(answer).__name__}: {answer}")
        self._check_version(request, answer)
        try:
            return self._finish(request.read(), answer)
        except Exception as error:  # restarting the engine would not help: the record is set aside with its reason
            log.exception("%s: %s", request.source, WHY_NO_TARGET)
            problem = f"AnswerError: {request.source}: {WHY_NO_TARGET}: {error!r}"
            return None, Outcome(key=request.key, failure=problem, new_tokens=len(answer.token_ids))

    @staticmethod
    def _check_version(request: AnyRequest, completion: Completion) -> None:
        if completion.first_version < request.min_version:
            raise ContractError(
                f"{request.key}: answered by version {completion.first_version}, {request.min_version} or newer was "
                "asked for; the pool gave a request to an engine that it had not synced"
            )

    def _finish(self, request: RolloutRequest, completion: Completion) -> tuple[Segment | None, Outcome]:
        """Parse, match, target: everything that turns tokens into a segment."""
        started = time.monotonic()
        settings, record = self._settings, request.record
        parsed = parse(completion.token_ids, self._codec)
        matched = match([p.shape for p in parsed.predictions], [t.shape for t in record.objects], settings.match)
        parsed_at = time.monotonic()
        target = build_target(
            record=record,
            completion=completion,
            parsed=parsed,
            match=matched,
            suffix_ids=self._suffix_ids,
            codec=self._codec,
            settings=settings.target,
            duplicates=count_duplicates(parsed.predictions),
        )
        descs = [(parsed.predictions[p].desc, record.objects[t].desc) for p, t, _ in matched.pairs]
        stats = replace(
            target.stats,
            **self._descs.compare(descs, evaluates=request.evaluates),
            repeat_terminated=int(completion.repeat_terminated),
            decode_mode=settings.decode.mode,
        )
        outcome = Outcome(
            key=request.key,
            new_tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason,
            parse_match_s=parsed_at - started,
            encode_s=time.monotonic() - parsed_at,
        )
        if settings.trace and request.traced:
            trace = RolloutTrace.of(request, completion, parsed, matched, stats, self._suffix_ids)
            outcome = replace(outcome, trace=trace.encode())
        if request.evaluates:
            return None, replace(outcome, evaluated=stats)
        if problem := self._problem(target, record.source):
            return None, replace(outcome, failure=problem)
        assert target.segment is not None, "an oversize target is a problem"
        return target.segment, replace(outcome, meta=_meta(target.segment, stats))

    def _problem(self, target: Target, source: str) -> str:
        """Why a target cannot be trained on; empty where it can."""
        if target.segment is None:
            lengths = f"encoded {target.stats.encoded_len} tokens, limit {self._settings.target.max_length}"
            return f"Oversize: {source}: {lengths}; raise global_max_length"
        if np.isin(target.segment.input_ids[target.segment.prompt_len :], self._placeholder_ids).any():
            why = "the answer holds an image's placeholder, which the learner would take for an image"
            return f"Placeholder: {source}: {why}; look at it with replay"
        return ""


def _meta(segment: Segment, stats: SegmentStats) -> SegmentMeta:
    arrays = (segment.input_ids, segment.labels, segment.coord_positions, segment.coord_bins, segment.coord_in_prefix)
    return SegmentMeta(
        key=segment.key,
        length=len(segment.input_ids),
        num_bytes=sum(array.nbytes for array in arrays),
        first_version=segment.first_version,
        last_version=segment.last_version,
        stats=stats,
    )
