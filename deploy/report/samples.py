"""The best and the worst rollouts of a run, and the same images at its first and last evaluation: overlay, numbers, and
the target with its masks."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from actors.codec import HubCodec
from deploy.file_codec import load_codec
from deploy.overlay import draw_rollout
from deploy.recorder import RecordedRollout
from deploy.replay import difference, replay_answer
from deploy.run_files import RunData
from deploy.target_html import target_html
from protocol.config import RunConfig, load_config
from protocol.desc import count_exact
from protocol.errors import ConfigError
from protocol.traces import RolloutTrace

_WIDTH_PX = 460
_MOST_TARGET_CHARS = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One card of the page."""

    title: str
    facts: str
    picture: str | None
    """A data URL."""
    problem: str
    """Why there is no picture, or no target."""
    target: str
    """HTML; empty where the tokenizer is not here."""
    command: str
    """What shows every decision about it."""


def best_and_worst(run: RunData, count: int = 3) -> tuple[list[Sample], list[Sample]]:
    """From the newer half of the recorded rollouts with ground truth, each record once; without any, from what was
    evaluated."""
    newer = run.rollouts[len(run.rollouts) // 2 :] or run.evaluated
    latest = {each.trace.key.record: each for each in newer if each.trace.record.objects}
    # Many objects make a sample telling: among equals they come first.
    ranked = sorted(latest.values(), key=lambda each: _rank(each.trace), reverse=True)
    worst = sorted(latest.values(), key=lambda each: (each.trace.f1, -len(each.trace.record.objects)))
    best = [each for each in ranked if each.trace.f1 > 0][:count]
    names = {each.trace.key for each in best}
    maker = _SampleMaker(run)
    return [maker.make(each) for each in best], [maker.make(e) for e in worst if e.trace.key not in names][:count]


def _rank(trace: RolloutTrace) -> tuple[float, float, float, int]:
    """How good an answer looks: F1 first, then what it does not see, shapes as close as an eye tells them apart."""
    return trace.f1, round(_mean_iou(trace), 1), _num_exact(trace) / max(1, len(trace.pairs)), len(trace.record.objects)


def _mean_iou(trace: RolloutTrace) -> float:
    return sum(pair.mask_iou for pair in trace.pairs) / len(trace.pairs) if trace.pairs else 0.0


def _num_exact(trace: RolloutTrace) -> int:
    """Pairs with the same description."""
    objects = trace.record.objects
    return count_exact(
        (trace.predictions[pair.prediction].desc, objects[pair.ground_truth].desc) for pair in trace.pairs
    ).exact


def first_and_last(run: RunData, count: int = 4) -> list[tuple[RecordedRollout, RecordedRollout]]:
    """Answers to the same validation images, the first ones, at the first and the last evaluation; none where there was
    only one."""
    counted = {row["step"] for row in run.evaluations}  # a resume takes evaluations back, but not their answers
    found = {(each.step, each.trace.key): each for each in run.evaluated if each.step in counted}
    steps = sorted({step for step, _ in found})
    if len(steps) < 2:
        return []
    first, last = steps[0], steps[-1]
    keys = [key for step, key in sorted(found) if step == first and (last, key) in found]
    return [(found[first, key], found[last, key]) for key in keys[:count]]


def before_and_after(run: RunData) -> list[tuple[Sample, Sample]]:
    """`first_and_last` as cards."""
    maker = _SampleMaker(run)
    return [(maker.make(before), maker.make(after)) for before, after in first_and_last(run)]


class _SampleMaker:
    """Loads the run's tokenizer once."""

    def __init__(self, run: RunData) -> None:
        self._run = run
        self._config: RunConfig | None = None
        self._codec: HubCodec | None = None
        self._problem = ""
        try:
            self._config = load_config(run.folder / "config.yaml")
            self._codec = load_codec(self._config.model.model)
        except ConfigError as error:  # the report is often read elsewhere; the card says what is missing
            self._problem = f"Targets are not shown: {error}"

    def make(self, rollout: RecordedRollout) -> Sample:
        trace = rollout.trace
        picture, problem = _picture(rollout)
        target, differs = self._target(rollout)
        pairs = f", mean maskIoU {_mean_iou(trace):.2f}, {_num_exact(trace)} described exactly" if trace.pairs else ""
        facts = (
            f"F1 {trace.f1:.2f} · {len(trace.pairs)} matched of {len(trace.predictions)} predicted and "
            f"{len(trace.record.objects)} true{pairs} · {len(trace.rejects)} rejected · "
            f"{trace.stats.rollout_len} tokens · step {rollout.step} · version {trace.first_version}"
        )
        return Sample(
            title=trace.record.source,
            facts=facts + (" · truncated" if trace.stats.parse_truncated else ""),
            picture=picture,
            problem=" ".join(filter(None, (problem, self._problem, differs))),
            target=target,
            command=f"rollmatch replay --run {self._run.folder} --key {trace.key}"
            + (f" --step {rollout.step}" if trace.key.evaluates else ""),
        )

    def _target(self, rollout: RecordedRollout) -> tuple[str, str]:
        """The target under the settings that the run has now, and how it differs from what was trained, if it does."""
        if self._config is None or self._codec is None:
            return "", ""
        seen = replay_answer(rollout.trace, self._config, self._codec)
        html, differs = target_html(seen.tokens), difference(seen, rollout.trace)
        return html if len(html) <= _MOST_TARGET_CHARS else "", f"The target {differs}." if differs else ""


def _picture(rollout: RecordedRollout) -> tuple[str | None, str]:
    try:
        image = draw_rollout(rollout.trace, _WIDTH_PX)
    except OSError as error:
        return None, f"No picture: {error}."
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode(), ""
