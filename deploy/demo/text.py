"""The demo's prompts and answers. The prompts are short because a 4 M parameter model needs no persuasion."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.demo.scenes import DrawnObject, SceneSettings
from protocol.contracts import GroundTruth, Shape
from protocol.norm1000 import to_bin
from protocol.serialization import assistant_text

SYSTEM_PROMPT = "Answer with one JSON object."
USER_PROMPT = "List every object with its desc and bbox_2d or poly, top to bottom."

_SIDE_PX = SceneSettings().side_px


def answer_text(objects: Sequence[DrawnObject]) -> str:
    """Canonical answer of SPEC 2.4 for drawn objects."""
    truths = [
        GroundTruth(
            index=number,
            desc=drawn.desc,
            shape=Shape(drawn.geometry, tuple(to_bin(value, _SIDE_PX) for value in drawn.points)),
        )
        for number, drawn in enumerate(objects, start=1)
    ]
    return assistant_text(truths)
