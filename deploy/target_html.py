"""A target as HTML: each token coloured by what it learns. Shared by monitor dumps and the report."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby

from protocol.replay import Mask, TargetToken

MASK_CSS = """
.target { font: 13px/1.7 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.target .context { color: #57606a; }
.target .coord { background: #d8ecff; color: #0a3d78; border-radius: 3px; }
.target .coord b { color: #b35900; }
.target .ce { background: #d9f5e0; color: #11592a; border-radius: 3px; }
.target .ignored { background: #f2e9fb; color: #6b4a8a; border-radius: 3px; }
"""


def target_html(tokens: Sequence[TargetToken]) -> str:
    """A `div` with one `span` per run of tokens of one mask."""
    runs = groupby(tokens, key=lambda token: token.mask)
    return '<div class="target">' + "".join(_run(mask, list(group)) for mask, group in runs) + "</div>"


def legend_html() -> str:
    """What the colours mean, in the same classes."""
    words = " &nbsp; ".join(f'<span class="{mask}">{escape(mask.words)}</span>' for mask in Mask)
    return f'<div class="target">{words}</div>'


def _run(mask: Mask, tokens: list[TargetToken]) -> str:
    return f'<span class="{mask}">{"".join(_token(token) for token in tokens)}</span>'


def _token(token: TargetToken) -> str:
    moved = token.bin is not None and token.text != f"<|coord_{token.bin}|>"
    return escape(token.text) + (f"<b>→{token.bin}</b>" if moved else "")
