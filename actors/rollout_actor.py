"""One rollout actor: engine → parse → match → target, streamed back as each completion ends.

The driver calls `rollout`, a Ray streaming generator, as often as it has requests; the calls run side by side, each in
a thread of its own, and `engine_loop` mixes their requests into the engine's running batch. Parsing and matching happen
in the call's thread, while the engine goes on.

Each finished request yields two objects: its segment (or None), then its small `Outcome`. The driver owns both from the
moment they are yielded, so they outlive this process, and it fetches only the second. The outcome comes last because
whoever has it also has the segment: an actor that dies between the two has answered nothing.
"""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.codec import ChatFrame, HubCodec
from actors.desc_monitor import DescMonitor
from actors.engine import Bucket, EngineProgress, LoadReport, RolloutEngine
from actors.engine_loop import Answer, EngineLoop, InFlight
from actors.engines import build_engine
from actors.settings import ActorSettings
from protocol.contracts import (
    Completion,
    RequestKey,
    RolloutRequest,
    Segment,
    SegmentMeta,
    SegmentStats,
    WeightsManifest,
)
from protocol.errors import ContractError, DataFailure, EngineError
from protocol.matching import count_duplicates, match
from protocol.parsing import parse
from protocol.targets import build_target
from protocol.traces import RolloutTrace
from protocol.vocab import TokenCodec


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one request: exactly one of `meta`, `evaluated` and `failure` is set."""

    key: RequestKey
    meta: SegmentMeta | None = None
    """A trainable segment came as the object before this one."""
    evaluated: SegmentStats | None = None
    failure: str | None = None
    """Why this record can never work: `reason: detail` for the quarantine file."""
    last_version: int = 0
    new_tokens: int = 0
    finish_reason: str = ""
    parse_match_s: float = 0.0
    encode_s: float = 0.0
    """Building the teacher-forced segment."""
    latency_s: float = 0.0
    """From the call to the last token: waiting and decoding."""
    trace: RolloutTrace | None = None
    """Of a training request, where `ActorSettings.trace` asks for it."""
    actor: str = ""
    """Name of its slot in the pool, which fills it in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorReady:
    """First answer of an actor."""

    pid: int
    version: int
    start_seconds: float
    warmup_tokens: int


def load_processor(model: str) -> Any:
    """The checkpoint's own processor, offline."""
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(model, local_files_only=True)


class RolloutActor:
    """Plain class; `pool` turns it into a Ray actor. `engine` may be given, for tests without vLLM."""

    def __init__(self, settings: ActorSettings, engine: RolloutEngine | None = None) -> None:
        self._settings = settings
        self._engine = engine

    def start(self, warmup: RolloutRequest | None) -> ActorReady:
        """Builds the engine and answers one request, which warms caches up. Slow: the caller sets the deadline."""
        started = time.monotonic()
        self._descs = DescMonitor(self._settings.descs)
        self.loop = EngineLoop(self._open(), self._settings.decode.batch_size)
        self.loop.start()
        answers = self.rollout([warmup]) if warmup else ()
        tokens = sum(item.new_tokens for item in answers if isinstance(item, Outcome))
        return ActorReady(
            pid=os.getpid(),
            version=self.loop.progress.version,
            start_seconds=time.monotonic() - started,
            warmup_tokens=tokens,
        )

    def rollout(self, requests: Sequence[RolloutRequest]) -> Iterator[Outcome | Segment | None]:
        """Answers every request once, in order of completion: its `Segment` or None, then its `Outcome`.

        EngineError when the engine fails before all are answered.
        """
        answers: queue.SimpleQueue[tuple[RolloutRequest, Answer]] = queue.SimpleQueue()
        started = time.monotonic()
        self.loop.submit(requests, lambda request, answer: answers.put((request, answer)))
        for _ in requests:
            request, answer = answers.get()  # the engine's thread answers each request, also when it fails
            if isinstance(answer, EngineError):
                raise answer
            yield from self._outcome(request, answer, time.monotonic() - started)

    def load_weights(self, manifest: WeightsManifest, refs: Sequence[Any], in_flight: InFlight = "drain") -> LoadReport:
        """Fetches the buckets (zero-copy where they are local) and loads them. SyncError when they do not attest."""
        import ray

        started = time.monotonic()
        buckets: list[Bucket] = ray.get(list(refs))
        fetched = time.monotonic()
        report = self.loop.load_weights(manifest, buckets, in_flight)
        waited = time.monotonic() - fetched - report.load_seconds
        return replace(report, fetch_seconds=fetched - started, wait_seconds=waited)

    def sleep(self) -> None:
        """Leaves the device to others until the next request or publish."""
        self.loop.ask(lambda engine: engine.sleep())

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
        return lambda: self._engine or build_engine(self._settings, self._frame, self._codec, processor)

    def _outcome(
        self, request: RolloutRequest, answer: Completion | DataFailure, latency_s: float
    ) -> Iterator[Outcome | Segment | None]:
        if isinstance(answer, DataFailure):
            yield None
            yield Outcome(key=request.key, failure=f"{type(answer).__name__}: {answer}")
        else:
            segment, outcome = self._finish(request, answer)
            yield segment
            yield replace(outcome, latency_s=latency_s)

    def _finish(self, request: RolloutRequest, completion: Completion) -> tuple[Segment | None, Outcome]:
        """Parse, match, target: everything that turns tokens into a segment."""
        if completion.first_version < request.min_version:
            raise ContractError(
                f"{request.key}: answered by version {completion.first_version}, {request.min_version} or newer was "
                "asked for; the pool gave a request to an engine that it had not synced"
            )
        started = time.monotonic()
        settings = self._settings
        record = request.record
        parsed = parse(completion.token_ids, self._codec)
        matched = match([p.shape for p in parsed.predictions], [t.shape for t in record.objects], settings.match)
        parsed_at = time.monotonic()
        target = build_target(
            key=request.key,
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
            last_version=completion.last_version,
            new_tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason,
            parse_match_s=parsed_at - started,
            encode_s=time.monotonic() - parsed_at,
        )
        if settings.trace and not request.evaluates:
            trace = RolloutTrace.of(request, completion, parsed, matched, stats, self._frame.suffix_ids)
            outcome = replace(outcome, trace=trace)
        if request.evaluates:
            return None, replace(outcome, evaluated=stats)
        if target.segment is None:
            lengths = f"encoded {stats.encoded_len} tokens, limit {settings.target.max_length}"
            return None, replace(outcome, failure=f"Oversize: {record.source}: {lengths}; raise global_max_length")
        return target.segment, replace(outcome, meta=_meta(target.segment, stats, completion))


def _meta(segment: Segment, stats: SegmentStats, completion: Completion) -> SegmentMeta:
    arrays = (segment.input_ids, segment.labels, segment.coord_positions, segment.coord_bins, segment.coord_in_prefix)
    return SegmentMeta(
        key=segment.key,
        length=len(segment.input_ids),
        num_bytes=sum(array.nbytes for array in arrays),
        first_version=segment.first_version,
        last_version=segment.last_version,
        new_tokens=len(completion.token_ids),
        finish_reason=completion.finish_reason,
        stats=stats,
    )
