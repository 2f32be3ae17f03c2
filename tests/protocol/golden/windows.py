"""The reference's repeater and reuse buffer (SPEC 14), which cases of the specification ask about.

The service has neither: a window is trained by one plan, `m_steps` times (`actors.controller`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


class WindowError(RuntimeError):
    """An M-step was offered samples that its window does not hold."""


def repeat(micro_batches: Iterable[T], *, group: int, m_steps: int) -> Iterator[T]:
    """Each full group of `group` items `m_steps` times, a final partial group once (SPEC 14).

    `"".join(repeat("ABCD", group=3, m_steps=2))` → `ABCABCD`. Raises ValueError when a count is not positive.
    """
    _check_repeat(group, m_steps)
    members: list[T] = []
    for item in micro_batches:
        members.append(item)
        if len(members) == group:
            for _ in range(m_steps):
                yield from members
            members = []
    yield from members


def repeated_length(num_micro_batches: int, *, group: int, m_steps: int) -> int:
    """How many items `repeat` yields: `repeated_length(4, group=3, m_steps=2)` → 7."""
    _check_repeat(group, m_steps)
    full, rest = divmod(num_micro_batches, group)
    return full * group * m_steps + rest


def _check_repeat(group: int, m_steps: int) -> None:
    if group <= 0 or m_steps <= 0:
        raise ValueError(f"repeat: group and m_steps must be > 0, got {group} and {m_steps}; set both to 1 or more")


def fingerprint(samples: Iterable[tuple[int | None, int | str | None]]) -> str:
    """SHA-1 of the compact JSON of `[[base_idx, "sample_id"], ...]`: whether two windows hold the same samples.

    The sample id is written as a string; None (unknown) stays null.
    """
    pairs = [[base, None if sample is None else str(sample)] for base, sample in samples]
    return hashlib.sha1(json.dumps(pairs, separators=(",", ":")).encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn(Generic[T]):
    """What one micro-step trains and where it stands in its window."""

    batch: T
    reused: bool
    window_step0: int
    """`global_step` at which the window was built."""
    completed: int
    """Optimizer steps that the window has had."""
    micro: int
    """0-based micro-step within the optimizer step."""


class ReuseBuffer(Generic[T]):
    """The reference's per-rank window, driven by micro-steps.

    Call `turn` once per micro-step. `build` is asked for a batch in an E-step only.
    """

    def __init__(self, *, group: int, m_steps: int) -> None:
        """`group` micro-steps make an optimizer step. Raises ValueError when a count is not positive."""
        _check_repeat(group, m_steps)
        self._group = group
        self._m_steps = m_steps
        self._cached: list[tuple[T, str | None]] = []
        self._step: int | None = None
        self._window_step0 = 0
        self._completed = 0
        self._micro = 0

    def turn(self, global_step: int, build: Callable[[], T], *, key: str | None = None) -> Turn[T]:
        """The batch of this micro-step: `build()` in an E-step, the cached one in an M-step.

        `key` is the fingerprint of the raw micro-batch, None when unknown. Raises WindowError when it differs from the
        cached one, or when an M-step has more micro-steps than its E-step had.
        """
        self._advance(global_step)
        if self._completed == 0:
            self._cached.append((build(), key))
        elif self._micro >= len(self._cached):
            raise WindowError(
                f"rollout_buffer: micro-step {self._micro} of step {global_step}, but the window that began at step "
                f"{self._window_step0} holds {len(self._cached)}; the loader must repeat whole windows"
            )
        batch, cached_key = self._cached[self._micro]
        if key is not None and cached_key is not None and key != cached_key:
            raise WindowError(
                f"rollout_buffer: micro-step {self._micro} of step {global_step} has fingerprint {key}, the window "
                f"holds {cached_key}; the loader must repeat the same samples m_steps={self._m_steps} times"
            )
        turn = Turn(
            batch=batch,
            reused=self._completed > 0,
            window_step0=self._window_step0,
            completed=self._completed,
            micro=self._micro,
        )
        self._micro += 1
        return turn

    def _advance(self, global_step: int) -> None:
        """Follow the optimizer: one step on within the window, or begin a new window here."""
        if global_step == self._step:
            return
        followed = self._step is not None and global_step == self._step + 1
        self._step, self._micro = global_step, 0
        self._completed += 1
        partial = self._completed == 1 and len(self._cached) != self._group  # would train some samples more often
        if not followed or partial or self._completed >= self._m_steps:
            self._cached, self._completed, self._window_step0 = [], 0, global_step
