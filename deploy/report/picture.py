"""`rollmatch report RUN --picture FILE`: the same validation images at the first and the last evaluation."""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from deploy.overlay import draw_rollout
from deploy.recorder import RecordedRollout
from deploy.report.samples import first_and_last
from deploy.run_files import RunData
from protocol.errors import ConfigError

SUFFIXES = (".png", ".jpg", ".jpeg")
_WIDTH_PX, _GAP_PX, _TITLE_PX, _FONT_PX = 360, 10, 24, 14


def write_picture(run: RunData, path: Path, columns: int) -> None:
    """A column per image, the first evaluation above the last.

    ConfigError where the run has no two evaluations whose answers were kept; OSError where an image cannot be read.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--picture: {path} ends with {path.suffix!r}; write one of {', '.join(SUFFIXES)}")
    pairs = first_and_last(run, columns)
    if not pairs:
        raise ConfigError(
            f"{run.folder}: has no two evaluations whose answers were kept; train with custom.val_jsonl and "
            "rollout.record_bytes above 0"
        )
    drawn = [[_titled(word, each) for word, each in zip(("before", "after"), pair, strict=True)] for pair in pairs]
    heights = [max(column[row].height for column in drawn) for row in (0, 1)]
    page = Image.new("RGB", (len(drawn) * (_WIDTH_PX + _GAP_PX) - _GAP_PX, sum(heights) + _GAP_PX), "white")
    for at, (before, after) in enumerate(drawn):
        left = at * (_WIDTH_PX + _GAP_PX)
        page.paste(before, (left, 0))
        page.paste(after, (left, heights[0] + _GAP_PX))
    path.parent.mkdir(parents=True, exist_ok=True)
    page.save(path)


def _titled(word: str, rollout: RecordedRollout) -> Image.Image:
    sample = draw_rollout(rollout.trace, _WIDTH_PX)
    page = Image.new("RGB", (sample.width, sample.height + _TITLE_PX), "white")
    page.paste(sample, (0, _TITLE_PX))
    text = f"{word}, step {rollout.step}: F1 {rollout.trace.f1:.2f}"
    ImageDraw.Draw(page).text((2, 3), text, fill="black", font=ImageFont.load_default(size=_FONT_PX))
    return page
