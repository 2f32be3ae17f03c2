"""One rollout actor: engine → parse → match → target, streamed back as each completion ends.

The driver calls `rollout`, a Ray streaming generator. Each finished request yields its small `Outcome` first; a
trained segment follows as a second object of its own. The driver owns both from the moment they are yielded, so they
outlive this process, and it fetches only the first.

Calls run one after another: `load_weights` waits for the generator that runs, so weights change between two batches
and never under one. Nothing here waits for the driver: a generator ends by itself when its requests are answered.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from actors.codec import ChatFrame, HubCodec
from actors.engine import Bucket, LoadReport, RolloutEngine
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
from protocol.desc import count_exact
from protocol.errors import ContractError, DataFailure
from protocol.matching import count_duplicates, match
from protocol.parsing import parse
from protocol.targets import build_target


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one request: exactly one of `meta`, `evaluated` and `failure` is set."""

    key: RequestKey
    meta: SegmentMeta | None = None
    """A trainable segment follows as the next object of the stream."""
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
    """From the engine's queue to the last token."""


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
        processor = load_processor(self._settings.engine.model)
        self._codec = HubCodec(processor.tokenizer)
        self._frame = ChatFrame(processor, self._settings.system_prompt, self._settings.user_prompt)
        if self._engine is None:
            from actors.vllm_engine import VllmEngine

            self._engine = VllmEngine(self._settings.engine, self._settings.decode, self._frame, processor)
        answers = self._answer([warmup]) if warmup else ()
        tokens = sum(item.new_tokens for item in answers if isinstance(item, Outcome))
        return ActorReady(
            pid=os.getpid(),
            version=self._engine.version,
            start_seconds=time.monotonic() - started,
            warmup_tokens=tokens,
        )

    def rollout(self, requests: Sequence[RolloutRequest]) -> Iterator[Outcome | Segment]:
        """Answers every request once, in order of completion: `Outcome`, then its `Segment` where `meta` is set."""
        yield from self._answer(requests)

    def load_weights(self, manifest: WeightsManifest, refs: Sequence[Any]) -> LoadReport:
        """Fetches the buckets (zero-copy where they are local) and loads them. SyncError when they do not attest."""
        import ray

        started = time.monotonic()
        buckets: list[Bucket] = ray.get(list(refs))
        fetched = time.monotonic() - started
        return replace(self.engine.load_weights(manifest, buckets), fetch_seconds=fetched)

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()

    @property
    def engine(self) -> RolloutEngine:
        assert self._engine is not None, "start() builds the engine"
        return self._engine

    def _answer(self, requests: Sequence[RolloutRequest]) -> Iterator[Outcome | Segment]:
        pending = {}
        for request in requests:
            try:
                self.engine.submit(request)
                pending[request.key] = request, time.monotonic()
            except DataFailure as failure:
                yield Outcome(key=request.key, failure=f"{type(failure).__name__}: {failure}")
        while pending:
            for completion in self.engine.step():
                request, submitted = pending.pop(completion.key)
                yield from self._finish(request, completion, time.monotonic() - submitted)

    def _finish(self, request: RolloutRequest, completion: Completion, latency_s: float) -> Iterator[Outcome | Segment]:
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
            suffix_ids=self._frame.suffix_ids,
            codec=self._codec,
            settings=settings.target,
            duplicates=count_duplicates(parsed.predictions),
        )
        descs = count_exact((parsed.predictions[p].desc, record.objects[t].desc) for p, t, _ in matched.pairs)
        stats = replace(target.stats, desc_pairs_total=descs.total, desc_exact_ok=descs.exact)
        outcome = Outcome(
            key=request.key,
            last_version=completion.last_version,
            new_tokens=len(completion.token_ids),
            finish_reason=completion.finish_reason,
            parse_match_s=parsed_at - started,
            encode_s=time.monotonic() - parsed_at,
            latency_s=latency_s,
        )
        if request.evaluates:
            yield replace(outcome, evaluated=stats)
        elif target.segment is None:
            lengths = f"encoded {stats.encoded_len} tokens, limit {settings.target.max_length}"
            yield replace(outcome, failure=f"Oversize: {record.source}: {lengths}; raise global_max_length")
        else:
            yield replace(outcome, meta=_meta(target.segment, stats, completion))
            yield target.segment


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
