"""What the model is asked: the built-in prompts and how a run file replaces them (SPEC 2.5, A15).

The examples are valid JSON, with double quotes, because a model copies the form it is shown.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from protocol.errors import ConfigError
from protocol.vocab import coord_token

if TYPE_CHECKING:
    from protocol.config import RunConfig

_BBOX = [coord_token(bin_) for bin_ in (112, 308, 407, 701)]
_POLY = [[coord_token(x), coord_token(y)] for x, y in ((520, 96), (688, 150), (655, 332), (498, 270))]
_ORDER_RULE = {
    "sorted": "List objects from top to bottom and, at equal height, from left to right; number them from 1.",
    "random": "List objects in any order; number them from 1 without gaps.",
}
_ORDER_REQUEST = {
    "sorted": "from top to bottom, then from left to right",
    "random": "in any order",
}


def default_prompts(ordering: Literal["sorted", "random"]) -> tuple[str, str]:
    """(system, user) for targets in this object order."""
    bbox = json.dumps({"desc": "black cat", "bbox_2d": _BBOX})
    poly = json.dumps({"desc": "paper kite", "poly": _POLY})
    system = (
        "You detect and ground objects in images. Your whole answer is exactly one JSON object with the keys "
        '"object_1", "object_2" and so on; write nothing before or after it.\n'
        'Each value holds "desc", a plain English description, and exactly one geometry: "bbox_2d" with the corners '
        'x1, y1, x2, y2, or "poly" with [x, y] vertices. Examples of a value: '
        f"{bbox} and {poly}.\n"
        "Coordinates are tokens <|coord_k|> with a whole number k from 0 to 999, relative to the image's width and "
        "height; always keep the token form, quoted.\n"
        "Write one line with double quotes, one space after each colon and comma, and no line breaks. "
        f"{_ORDER_RULE[ordering]}\n"
        "Any kind of object counts. Cover every target that is visible, rely on visible evidence only, and do not "
        'guess what is hidden. Where you cannot tell what an object is, write "unknown" and a short reason as its '
        "desc. Where nothing is visible, answer {}."
    )
    user = (
        f"Detect every object in the image and list them {_ORDER_REQUEST[ordering]}. Answer with one JSON object whose "
        'entries have "desc" and one geometry, written with the tokens <|coord_0|> to <|coord_999|>.'
    )
    return system, user


def resolve_prompts(config: RunConfig) -> tuple[str, str]:
    """(system, user) of a run: `custom.system_prompt` and `custom.user_prompt` where set, else the built-in ones.

    A value that ends in `.txt` is a path; ConfigError when it cannot be read or is blank.
    """
    system, user = default_prompts(config.custom.object_ordering)
    return (
        _text(config.custom.system_prompt, system, "custom.system_prompt"),
        _text(config.custom.user_prompt, user, "custom.user_prompt"),
    )


def _text(given: str | None, default: str, path: str) -> str:
    if given is None:
        return default
    if not given.endswith(".txt"):
        return given
    try:
        text = Path(given).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {given} cannot be read ({error}); correct the path, or write the prompt") from error
    if not text:
        raise ConfigError(f"{path}: {given} is blank; write the prompt into it, or remove the key")
    return text
