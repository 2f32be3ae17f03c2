"""Real engines outside an actor: what benchmarks of them start from. Imports of heavy libraries wait for the call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def demo_settings(*overrides: str) -> Any:
    """`ActorSettings` of the demo's run file and checkpoint."""
    from actors.settings import ActorSettings
    from protocol.config import load_config

    model = f"model.model={ROOT / 'deploy/demo/model'}"
    return ActorSettings.from_config(load_config(ROOT / "configs" / "demo.yaml", overrides=[model, *overrides]))


def open_engine(settings: Any) -> Any:
    """The engine that an actor with these settings would own. Slow: it loads the checkpoint."""
    from actors.codec import ChatFrame, HubCodec
    from actors.engines import build_engine
    from actors.rollout_actor import load_processor

    processor = load_processor(settings.engine.model)
    frame = ChatFrame(processor, settings.system_prompt, settings.user_prompt)
    return build_engine(settings, frame, HubCodec(processor.tokenizer), processor)
