"""Learning rates over optimizer steps: warm-up from zero, then constant, linear or cosine decay to a floor."""

from __future__ import annotations

import math

from learner.settings import ScheduleSettings


def learning_rate(peak: float, step: int, settings: ScheduleSettings) -> float:
    """Rate of optimizer step `step` (0-based).

    Warm-up is linear and ends at the peak: with 4 warm-up steps the rates are peak/4, 2·peak/4, 3·peak/4, peak. The
    decay reaches the floor one step after the last, so that no step of a run trains at zero by accident. A floor
    above the peak of a group leaves that group constant.
    """
    if step < 0:
        raise ValueError(f"step must be >= 0, got {step}")
    if step < settings.warmup_steps:
        return peak * (step + 1) / settings.warmup_steps
    floor = min(settings.min_lr, peak)
    return floor + (peak - floor) * _decay(step, settings)


def _decay(step: int, settings: ScheduleSettings) -> float:
    """1 at the end of warm-up, 0 at `max_steps`."""
    if settings.kind == "constant":
        return 1.0
    span = max(1, settings.max_steps - settings.warmup_steps)
    progress = min(1.0, (step - settings.warmup_steps) / span)
    if settings.kind == "linear":
        return 1.0 - progress
    return 0.5 * (1.0 + math.cos(math.pi * progress))
