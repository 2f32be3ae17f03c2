"""Recorded rollouts for tests, made as an actor makes them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

from actors.codec import HubCodec
from deploy.file_codec import load_codec
from protocol.contracts import Completion, GroundTruth, Record, RequestKey, RolloutRequest
from protocol.matching import MatchSettings
from protocol.replay import Answer, replay
from protocol.targets import TargetSettings
from protocol.traces import RolloutTrace
from protocol.vocab import END_OF_TURN

ROOT = Path(__file__).resolve().parents[2]
MODEL = str(ROOT / "deploy" / "demo" / "model")


@cache
def codec() -> HubCodec:
    """The demo checkpoint's tokenizer."""
    return load_codec(MODEL)


def trace_of(
    record: int,
    text: str,
    *,
    truths: tuple[GroundTruth, ...],
    image: str = "x.png",
    version: int = 0,
    epoch: int = 0,
) -> RolloutTrace:
    """The trace of an answer to a record with these objects, as a run of the demo makes it."""
    key = RequestKey(record, epoch)
    data = Record(index=record, source=f"t:{record + 1}", images=(image,), width=128, height=128, objects=truths)
    ids = np.asarray(codec().encode(text + END_OF_TURN), dtype=np.int32)
    suffix = codec().encode(END_OF_TURN + "\n")
    seen = replay(
        Answer(key=key, record=data, token_ids=ids, prompt_len=5, suffix_ids=tuple(suffix)),
        codec(),
        matching=MatchSettings(),
        target=TargetSettings(max_length=4096, prefix_policy="matched"),
    )
    completion = Completion(
        key=key,
        prompt_token_ids=np.zeros(5, dtype=np.int32),
        token_ids=ids,
        finish_reason="stop",
        first_version=version,
        last_version=version,
    )
    request = RolloutRequest(key=key, record=data, seed=0)
    return RolloutTrace.of(request, completion, seen.parsed, seen.match, seen.target.stats, suffix)
