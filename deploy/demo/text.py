"""The demo's prompts and answers. The prompts are short because a 3.5 M model needs no persuasion."""

from __future__ import annotations

import json
from collections.abc import Sequence

from deploy.demo.scenes import DrawnObject, to_bin
from protocol.vocab import coord_token

SYSTEM_PROMPT = "Answer with one JSON object."
USER_PROMPT = "List every object with its desc and bbox_2d or poly, top to bottom."


def answer_text(objects: Sequence[DrawnObject], side: int = 128) -> str:
    """Canonical answer of SPEC 2.4 for drawn objects."""
    payload = {}
    for number, drawn in enumerate(objects, start=1):
        tokens = [coord_token(to_bin(value, side)) for value in drawn.points]
        pairs = [tokens[i : i + 2] for i in range(0, len(tokens), 2)]
        flat = drawn.geometry == "bbox_2d"
        payload[f"object_{number}"] = {"desc": drawn.desc, drawn.geometry: tokens if flat else pairs}
    return json.dumps(payload, ensure_ascii=False)
