"""What ranks report about an optimizer step, and what the group makes of it for the driver."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, field

from learner.losses import LossSums
from protocol.contracts import RequestKey
from protocol.errors import LearnerError, NonFiniteError


class PeerError(LearnerError):
    """Another rank could not prepare its share of a step; the one that raises this did nothing wrong."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Wall time of a rank's phases within one optimizer step."""

    fetch: float = 0.0
    """Segments out of the object store, waiting for images, prompt check."""
    mask_build: float = 0.0
    """Collating rows, labels and position ids."""
    forward: float = 0.0
    backward: float = 0.0
    optimizer: float = 0.0

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def busy(self) -> float:
        return float(sum(astuple(self)))


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStep:
    """One rank's share of an optimizer step."""

    sums: LossSums
    loss: float
    """This rank's part of the step's loss: the parts of all ranks add up."""
    num_tokens: int
    seconds: Seconds
    grad_norm: float
    """Global, before clipping; the same on every rank."""
    learning_rate: float
    """Of the language model; where that is frozen, of the first part that is trained."""
    skipped: bool
    """Loss or gradient was not finite: no parameter moved on any rank."""
    non_finite_keys: tuple[RequestKey, ...] = ()
    """Segments of the micro-batches whose loss was not finite on this rank."""
    skipped_keys: tuple[RequestKey, ...] = ()
    """All of this rank's segments, where the step was skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One optimizer step over all ranks."""

    sums: LossSums
    loss: float
    """As optimised."""
    grad_norm: float
    learning_rate: float
    num_tokens: int
    skipped: bool
    non_finite_keys: tuple[RequestKey, ...] = ()
    """Of a skipped step: segments of the micro-batches whose loss was not finite; all of the step's segments where only
    the gradient was not."""
    slowest: Seconds = Seconds()
    """Of each phase, over the ranks."""
    busy_s: tuple[float, ...] = field(default=())
    """Per rank."""

    def metrics(self) -> dict[str, float]:
        """Under the runbook's names; a mean without observations is absent (SPEC A12)."""
        sums = self.sums
        found = {
            "loss/total": self.loss,
            "train/grad_norm": self.grad_norm,
            "train/learning_rate": self.learning_rate,
            "train/skipped_steps": float(self.skipped),
            "train/tokens": float(self.num_tokens),
            "train/ce_tokens": float(sums.ce_tokens),
            "train/coord_tokens": float(sums.coord_targets),
            **{f"time/{name}_s": seconds for name, seconds in asdict(self.slowest).items()},
        }
        means = {
            "loss/ce": (sums.ce_sum, sums.ce_tokens),
            "loss/coord": (sums.coord_sum, sums.coord_targets),
            "loss/coord_prefix": (sums.coord_prefix_sum, sums.coord_prefix_count),
            "loss/coord_tail": (sums.coord_tail_sum, sums.coord_tail_count),
        }
        return found | {name: total / count for name, (total, count) in means.items() if count}


def combine(ranks: Sequence[RankStep]) -> StepResult:
    """Adds sums and losses over ranks; times are those of the slowest rank."""
    return StepResult(
        sums=sum((rank.sums for rank in ranks), LossSums()),
        loss=sum(rank.loss for rank in ranks),
        grad_norm=ranks[0].grad_norm,
        learning_rate=ranks[0].learning_rate,
        num_tokens=sum(rank.num_tokens for rank in ranks),
        skipped=ranks[0].skipped,
        non_finite_keys=_all(rank.non_finite_keys for rank in ranks) or _all(rank.skipped_keys for rank in ranks),
        busy_s=tuple(rank.seconds.busy for rank in ranks),
        slowest=Seconds(*map(max, zip(*(astuple(rank.seconds) for rank in ranks), strict=True))),
    )


def _all(keys: Iterable[tuple[RequestKey, ...]]) -> tuple[RequestKey, ...]:
    return tuple(itertools.chain.from_iterable(keys))


class SkipLimit:
    """Counts skipped steps in a row, so that a run whose weights or data are broken ends instead of idling."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._in_a_row = 0

    def note(self, result: StepResult) -> None:
        """NonFiniteError when this step is the one too many."""
        self._in_a_row = self._in_a_row + 1 if result.skipped else 0
        if self._in_a_row > self._limit:
            names = ", ".join(str(key) for key in result.non_finite_keys)
            raise NonFiniteError(
                f"training.max_skipped_steps: {self._in_a_row} optimizer steps in a row were skipped, {self._limit} "
                f"are allowed (last loss {result.loss}, gradient norm {result.grad_norm}); the last one trained "
                f"{names}: look at these records, lower training.learning_rate, or compute in bfloat16 or float32"
            )
