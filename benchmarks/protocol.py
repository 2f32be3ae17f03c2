"""Parse, match and target of one rollout on one core, beside `json.loads` of the same text.

    python -m benchmarks.protocol [--write]

Scenes are drawn: two thirds of the predictions are jittered ground truth, the rest lie anywhere, one truth in ten is
missing. Text is in the canonical form and in real Qwen byte-pair tokens. *Crowded* scenes put everything into a sixth
of the image, so that every prediction has overlapping candidates. Times are processor milliseconds of the one thread
that works, the median of repeated calls: other processes on the machine do not count.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.reporting import finish, print_table
from protocol.contracts import Completion, GroundTruth, Record, RequestKey, Shape
from protocol.matching import MatchSettings, count_duplicates, match
from protocol.parsing import parse
from protocol.serialization import assistant_text
from protocol.targets import TargetSettings, build_target
from protocol.vocab import TokenCodec
from tests.protocol.codecs import qwen_codec

MATCHING = MatchSettings(candidate_top_k=5, maskiou_gate=0.3, maskiou_resolution=256, fp_cost=0.5, fn_cost=2.0)
BARS_MS = {20: 0.8, 100: 3.9, 300: 27.0}
"""Parse plus match, for boxes: a tenth of what the reference needs on such a machine."""
POLYGON_POINTS = 12
DESCS = ("cat", "black cat", "dining table", "person", "traffic light", "bottle (glass)", "book", "wine glass")
_KEY = RequestKey(0)


@dataclass(frozen=True, slots=True)
class Scene:
    name: str
    record: Record
    text: str
    num_predictions: int


def draw(name: str, kind: str, count: int, side: int, seed: int) -> Scene:
    """`count` predictions and about as many truths within `side` bins."""
    rng = random.Random(seed)
    truths = [GroundTruth(index=at + 1, desc=rng.choice(DESCS), shape=_shape(rng, kind, side)) for at in range(count)]
    answered = [
        GroundTruth(
            index=truth.index,
            desc=truth.desc,
            shape=_jitter(rng, truth.shape) if rng.random() < 0.67 else _shape(rng, kind, side),
        )
        for truth in truths
    ]
    kept = [truth for truth in truths if rng.random() >= 0.1]
    record = Record(index=0, source="drawn:1", images=("a.jpg",), width=1000, height=1000, objects=tuple(kept))
    return Scene(name, record, assistant_text(answered) + "<|im_end|>", count)


def _shape(rng: random.Random, kind: str, side: int) -> Shape:
    width, height = rng.randint(12, 120), rng.randint(12, 120)
    x, y = rng.randint(0, max(1, side - width)), rng.randint(0, max(1, side - height))
    if kind == "boxes":
        return Shape("bbox_2d", (x, y, x + width, y + height))
    angles = [2 * np.pi * at / POLYGON_POINTS for at in range(POLYGON_POINTS)]
    radii = [rng.uniform(0.6, 1.0) for _ in angles]
    points = [
        (round(x + width / 2 * (1 + r * np.cos(a))), round(y + height / 2 * (1 + r * np.sin(a))))
        for a, r in zip(angles, radii, strict=True)
    ]
    return Shape("poly", tuple(min(999, value) for point in points for value in point))


def _jitter(rng: random.Random, shape: Shape) -> Shape:
    return Shape(shape.geometry, tuple(min(999, max(0, value + rng.randint(-4, 4))) for value in shape.bins))


def milliseconds(call: Callable[[], object], seconds: float = 0.5) -> float:
    """Median of repeated calls after one warm-up."""
    call()
    times: list[float] = []
    stop = time.thread_time() + seconds
    while time.thread_time() < stop or len(times) < 5:
        begin = time.thread_time()
        call()
        times.append(time.thread_time() - begin)
    return statistics.median(times) * 1e3


def measure(scene: Scene, codec: TokenCodec) -> dict[str, Any]:
    """Each stage alone, on what the stage before it gave."""
    ids = np.asarray(codec.encode(scene.text), dtype=np.int32)
    json_text = scene.text.removesuffix("<|im_end|>")
    parsed = parse(ids, codec)
    assert len(parsed.predictions) == scene.num_predictions
    predictions = [item.shape for item in parsed.predictions]
    truths = [item.shape for item in scene.record.objects]
    result = match(predictions, truths, MATCHING)
    completion = Completion(
        key=_KEY,
        prompt_token_ids=np.arange(1000, dtype=np.int32),
        token_ids=ids,
        finish_reason="stop",
        first_version=0,
        last_version=0,
    )
    settings = TargetSettings(max_length=10**6)

    def target() -> object:
        return build_target(
            record=scene.record,
            completion=completion,
            parsed=parsed,
            match=result,
            suffix_ids=(151645, 198),
            codec=codec,
            settings=settings,
        )

    parse_ms = milliseconds(lambda: parse(ids, codec))
    match_ms = milliseconds(lambda: match(predictions, truths, MATCHING))
    json_ms = milliseconds(lambda: json.loads(json_text))
    return {
        "scene": scene.name,
        "tokens": len(ids),
        "matched": len(result.pairs),
        "parse_ms": parse_ms,
        "match_ms": match_ms,
        "target_ms": milliseconds(target),
        "duplicates_ms": milliseconds(lambda: count_duplicates(parsed.predictions)),
        "json_loads_ms": json_ms,
        "parse_per_json_loads": parse_ms / json_ms,
        "parse_and_match_ms": parse_ms + match_ms,
        "bar_ms": BARS_MS.get(scene.num_predictions) if scene.name.endswith("boxes") else None,
    }


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, as the bar is worded
    codec = qwen_codec()
    scenes = [draw(f"{count} boxes", "boxes", count, 999, count) for count in (20, 100, 300)]
    scenes += [draw(f"{count} boxes, crowded", "boxes", count, 400, count) for count in (20, 100, 300)]
    scenes += [draw(f"{count} polygons", "polygons", count, 999, count) for count in (20, 100)]
    rows = [measure(scene, codec) for scene in scenes]
    columns = {
        "scene": "scene",
        "tokens": "tokens",
        "matched": "matched",
        "parse_ms": "parse ms",
        "match_ms": "match ms",
        "target_ms": "target ms",
        "duplicates_ms": "duplicates ms",
        "parse_per_json_loads": "parse / json.loads",
        "parse_and_match_ms": "parse + match ms",
        "bar_ms": "bar ms",
    }
    table = [["" if row[name] is None else row[name] for name in columns] for row in rows]
    print_table("Parse, match and target of one rollout, one core", list(columns.values()), table)
    finish("protocol", {"scenes": rows})


if __name__ == "__main__":
    main()
