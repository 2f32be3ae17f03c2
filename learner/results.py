"""What ranks report about an optimizer step, and what the group makes of it for the driver."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field

from learner.losses import LossSums
from protocol.contracts import RequestKey
from protocol.errors import LearnerError


class PeerError(LearnerError):
    """Another rank could not prepare its share of a step; the one that raises this did nothing wrong."""


@dataclass(frozen=True, slots=True)
class Seconds:
    """Wall time of a rank's phases within one optimizer step."""

    fetch: float = 0.0
    """Segments out of the object store, images, prompt check."""
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
    """Of the first parameter group (language, where it is trained)."""
    skipped: bool
    """The gradient was not finite: no parameter moved."""
    non_finite_keys: tuple[RequestKey, ...] = ()
    """Segments of the micro-batches whose loss was not finite on this rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepResult:
    """One optimizer step over all ranks."""

    ce_sum: float
    ce_tokens: int
    coord_sum: float
    coord_targets: int
    coord_prefix_sum: float
    coord_prefix_count: int
    coord_tail_sum: float
    coord_tail_count: int
    loss: float
    """As optimised."""
    grad_norm: float
    learning_rate: float
    num_tokens: int
    skipped: bool
    non_finite_keys: tuple[RequestKey, ...] = ()
    forward_s: float = 0.0
    """Slowest rank, like the other times."""
    backward_s: float = 0.0
    mask_build_s: float = 0.0
    fetch_s: float = 0.0
    optimizer_s: float = 0.0
    busy_s: tuple[float, ...] = field(default=())
    """Per rank."""

    def metrics(self) -> dict[str, float]:
        """Under the runbook's names; a mean without observations is absent (SPEC A12)."""
        found = {
            "loss/total": self.loss,
            "train/grad_norm": self.grad_norm,
            "train/learning_rate": self.learning_rate,
            "train/skipped_steps": float(self.skipped),
            "train/tokens": float(self.num_tokens),
            "train/ce_tokens": float(self.ce_tokens),
            "train/coord_tokens": float(self.coord_targets),
            "time/fetch_s": self.fetch_s,
            "time/mask_build_s": self.mask_build_s,
            "time/forward_s": self.forward_s,
            "time/backward_s": self.backward_s,
            "time/optimizer_s": self.optimizer_s,
        }
        means = {
            "loss/ce": (self.ce_sum, self.ce_tokens),
            "loss/coord": (self.coord_sum, self.coord_targets),
            "loss/coord_prefix": (self.coord_prefix_sum, self.coord_prefix_count),
            "loss/coord_tail": (self.coord_tail_sum, self.coord_tail_count),
        }
        return found | {name: total / count for name, (total, count) in means.items() if count}


def combine(ranks: Sequence[RankStep]) -> StepResult:
    """Adds sums and losses over ranks; times are those of the slowest rank."""
    sums = sum((rank.sums for rank in ranks), LossSums())
    slowest = {f"{name}_s": max(getattr(rank.seconds, name) for rank in ranks) for name in Seconds.__slots__}
    return StepResult(
        **asdict(sums),
        loss=sum(rank.loss for rank in ranks),
        grad_norm=ranks[0].grad_norm,
        learning_rate=ranks[0].learning_rate,
        num_tokens=sum(rank.num_tokens for rank in ranks),
        skipped=ranks[0].skipped,
        non_finite_keys=tuple(key for rank in ranks for key in rank.non_finite_keys),
        busy_s=tuple(rank.seconds.busy for rank in ranks),
        **slowest,
    )
