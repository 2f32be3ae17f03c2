"""Which engine an actor runs: the registry of `rollout_matching.rollout_backend`."""

from __future__ import annotations

from typing import Any

from actors.codec import ChatFrame
from actors.engine import RolloutEngine
from actors.settings import ActorSettings
from protocol.vocab import TokenCodec


def build_engine(settings: ActorSettings, frame: ChatFrame, codec: TokenCodec, processor: Any) -> RolloutEngine:
    """Starts the engine that the settings name. Slow: it loads the checkpoint."""
    engine, decode = settings.engine, settings.decode
    # A backend is imported when it is asked for: each brings a heavy library.
    if engine.backend == "hf":
        from actors.hf_engine import HfEngine

        return HfEngine(engine, decode, frame, codec, processor)
    from actors.vllm_engine import VllmEngine

    return VllmEngine(engine, decode, frame, codec, processor)
