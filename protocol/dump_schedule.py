"""Which optimizer steps write a monitor dump (SPEC 18)."""

from __future__ import annotations


def dump_due(global_step: int, *, every_steps: int, first_step: bool, num_written: int, max_events: int) -> bool:
    """Whether a step with fresh rollouts dumps its samples.

    Args:
        global_step: optimizer steps before this one.
        every_steps: distance of two dumps, at least 1.
        first_step: whether step 0 may dump.
        num_written: dumps of this run so far.
        max_events: most dumps of a run; 0: no limit.
    """
    if max_events and num_written >= max_events:
        return False
    return global_step % max(1, every_steps) == 0 and (first_step or global_step > 0)
