"""Real engines outside an actor, and requests: what benchmarks of them start from. Imports of heavy libraries wait for
the call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from protocol.contracts import Record, RequestKey, RolloutRequest

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


def draw_requests(folder: Path, width: int, height: int, count: int, seed: int = 0) -> list[RolloutRequest]:
    """Requests on smooth noise as JPEG: about as many bytes as a photograph of that size."""
    rng, requests = np.random.default_rng(seed), []
    for index in range(count):
        path = folder / f"{width}-{seed}-{index}.jpg"
        coarse = Image.fromarray(rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8))
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(path, quality=90)
        record = Record(index=index, source=str(path), images=(str(path),), width=width, height=height, objects=())
        requests.append(RolloutRequest(key=RequestKey(index), record=record, seed=seed))
    return requests
