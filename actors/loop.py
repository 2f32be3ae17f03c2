"""What the loop is told, what it remembers, and whom it talks to: the nouns of `controller`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from fractions import Fraction
from typing import Any, Protocol

from actors.outcome import Outcome
from protocol.segments import PackPlan, SegmentMeta
from protocol.weights import WeightsManifest


class StepOutcome(Protocol):
    """What the learner says about one optimizer step."""

    def metrics(self) -> dict[str, float]: ...

    @property
    def busy_s(self) -> Sequence[float]:
        """Seconds that each rank worked within the step."""
        ...


class Learner(Protocol):
    """The training side as the loop sees it; `learner.group.LearnerGroup` in production."""

    def train_step(self, plan: PackPlan, segment_refs: Sequence[Any]) -> StepOutcome: ...

    def publish(self, version: int, full: bool) -> tuple[WeightsManifest, list[Any]]: ...


class Observer(Protocol):
    """Who is told: tracking and the progress line in production."""

    def phase(self, name: str, waiting_for: str) -> None: ...

    def step(self, step: int, metrics: dict[str, float]) -> None: ...

    def outcome(self, outcome: Outcome) -> None:
        """A training request was answered."""
        ...

    def evaluated(self, outcome: Outcome) -> None:
        """A validation request was answered."""
        ...

    def event(self, kind: str, **fields: Any) -> None: ...

    def window(self, window: TrainedWindow) -> None: ...

    def quarantine(self, outcome: Outcome) -> bool:
        """Whether the record is new: it fails again in each epoch, and after a resume where it was in flight."""
        ...


class Keeper(Protocol):
    """Who saves: `deploy.checkpoints` in production."""

    def due(self, step: int) -> bool: ...

    def snapshot(self, state: LoopState, position: int) -> Callable[[], object]:
        """Takes what a checkpoint remembers of the loop now; what is returned writes the checkpoint, in the learner's
        thread, and returns its path."""
        ...


class Planner(Protocol):
    """Segment lengths, oldest first → who trains what. The options are those of `protocol.carry`; a planner that trains
    every window whole is not given any."""

    def __call__(self, lengths: Sequence[int], /, **options: Any) -> PackPlan: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedWindow:
    """What one window trained: a line of the ledger."""

    first_step: int
    """Optimizer steps count from 1 here, as in the metrics."""
    last_step: int
    version: int
    """Weights that the first step trained on top of."""
    segments: tuple[SegmentMeta, ...]
    """In the order in which they were trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """The loop's numbers; see `training.*` and `rollout.*` in the configuration."""

    batch_size: int
    m_steps: int
    max_steps: int
    max_staleness: int
    eval_steps: int | Fraction
    """Optimizer steps between two evaluations; 0: only before and after."""
    top_k: int
    capacity: int | None
    """Tokens of a full pack, for the fill metric; None without packing."""
    desc_enabled: bool = False
    desc_every: int = 1
    """Optimizer steps between two reports of the desc monitor."""
    min_fill: float = 0.0
    """Packs that are filled less count as underfilled."""
    packing_carry: bool = False
    """The newest segments of a window may wait for the next one (`protocol.carry`)."""
    packing_drop_last: bool = True
    """With carry: what the last window holds back stays untrained."""
    save_last: bool = True
    takes_turns: bool = False
    """Engines leave their device before the learner uses it (`cluster.colocate`)."""
    num_eval_traced: int = 0
    """Of the first so many validation records, what is answered is kept to be looked at."""
    skip_publish: bool = False
    """Test switch: train, but never publish; SPEC A17 must stop the run."""


@dataclass(slots=True)
class LoopState:
    """Where the run is; what a checkpoint remembers of the loop."""

    step: int = 0
    version: int = 0
    accepted: int = 0
    """Rollouts whose segment entered the buffer, ever."""
    trained: int = 0
    carried: int = 0
    """Segments held back by the window before: the oldest of the next."""
    rewound: int = 0
    """Segments that were carried when a run stopped; a resume rolled them out again."""
    quarantined: int = 0
    versions_used: set[int] = field(default_factory=set)
    evaluations: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def evaluation_due(self, settings: LoopSettings) -> bool:
        """Whether `eval_steps` were crossed since the evaluation before, or the run is at its end."""
        every = settings.eval_steps
        last = self.evaluations[-1][0] if self.evaluations else 0
        crossed = every > 0 and self.step // every > last // every
        return crossed or self.step >= settings.max_steps

    def as_mapping(self) -> dict[str, Any]:
        """JSON values only; inverse of `from_mapping`."""
        return asdict(self) | {"versions_used": sorted(self.versions_used)}

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> LoopState:
        """The state that a checkpoint remembers; keys that are not ours are left alone."""
        known = {name.name: values[name.name] for name in fields(cls)}
        known["versions_used"] = set(known["versions_used"])
        known["evaluations"] = [(step, metrics) for step, metrics in known["evaluations"]]
        known["accepted"] = known["trained"]  # what was accepted and not trained is requested again
        known["rewound"], known["carried"] = known["rewound"] + known["carried"], 0
        return cls(**known)
