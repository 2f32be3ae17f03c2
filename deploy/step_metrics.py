"""What the driver alone knows about an event: where its time went, what its rollouts and its actors did meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from actors.outcome import Outcome
from actors.status import ActorStatus
from deploy.phase_clock import PhaseClock

OVERSIZE = "Oversize"
"""Reason with which an actor drops a target that is longer than `global_max_length`."""


class StepMetrics:
    """Collects between two events; `complete` adds what it has to the event's metrics."""

    def __init__(self, clock: PhaseClock) -> None:
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._since_rollouts_s = 0.0
        self._restarts = 0

    def outcome(self, outcome: Outcome) -> None:
        self._counts["accepted"] += outcome.meta is not None
        self._counts["oversize"] += (outcome.failure or "").startswith(OVERSIZE)

    def complete(self, metrics: Mapping[str, float], actors: Sequence[ActorStatus]) -> dict[str, float]:
        """`metrics` of an optimizer step or an evaluation, completed; counts and times begin anew."""
        seconds = self._clock.take()
        if "eval_rollout_f1" in metrics:
            return dict(metrics) | {"time/evaluate_s": seconds.get("evaluate", 0.0)}
        return dict(metrics) | self._times(metrics, seconds) | self._rollouts(metrics) | self._actors(actors)

    def checkpoint(self) -> dict[str, float]:
        """Metrics of a checkpoint that was just written."""
        return {"time/checkpoint_s": self._clock.take().get("save", 0.0)}

    def _times(self, metrics: Mapping[str, float], seconds: Mapping[str, float]) -> dict[str, float]:
        found = {"time/sync_s": seconds["sync"]} if "sync" in seconds else {}
        found["time/step_s"] = sum(seconds.get(phase, 0.0) for phase in ("rollout", "train", "sync"))
        self._since_rollouts_s += found["time/step_s"]
        if metrics.get("time/train_step_s"):
            found["train/tokens_per_s"] = metrics.get("train/tokens", 0.0) / metrics["time/train_step_s"]
        return found

    def _rollouts(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Rates per window, not per step: an M-step accepts none."""
        if metrics.get("rollout/buffer_reuse"):
            return {}
        accepted, seconds = self._counts["accepted"], self._since_rollouts_s
        found = {"rollout/oversize_dropped": float(self._counts["oversize"])}
        if seconds > 0:
            found["rollout/rollouts_per_s"] = accepted / seconds
        self._counts.clear()
        self._since_rollouts_s = 0.0
        return found

    def _actors(self, actors: Sequence[ActorStatus]) -> dict[str, float]:
        restarts = sum(sum(actor.restarts.values()) for actor in actors)
        fresh, self._restarts = restarts - self._restarts, restarts
        return {
            "rollout/actors_ready": float(sum(actor.state == "synced" for actor in actors)),
            "rollout/running": float(sum(actor.num_owed for actor in actors)),
            "rollout/actor_restarts": float(fresh),
        }
