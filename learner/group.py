"""The learner as the driver sees it: W ranks that act as one, and end as one.

Every call is made on all ranks and has a deadline. When a rank fails, the others may hang in a collective, so the
group is killed and the rank's error is raised; the driver restarts a group from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import ray

from learner.checkpoint import Checkpoint
from learner.ranks import LearnerRank, local_ranks
from learner.results import SkipLimit, StepResult, combine
from learner.settings import LearnerSettings
from learner.waiting import drain, wait_all
from protocol.errors import ContractError, DeadlineError, LearnerError, SegmentsLost
from protocol.segments import PackPlan, SegmentRef
from protocol.weights import SyncGroup, WeightsManifest

log = logging.getLogger("rollmatch.learner")


class LearnerGroup:
    """Starts, drives and kills the learner ranks. Not thread-safe: one driver thread calls it.

    `place(rank)` gives Ray actor options that say where a rank lives.
    """

    def __init__(
        self,
        settings: LearnerSettings,
        num_workers: int,
        *,
        cpus_per_worker: float = 1,
        gpus_per_worker: float = 0,
        place: Callable[[int], dict[str, Any]] | None = None,
        start_timeout_s: float = 300,
        step_timeout_s: float = 600,
    ) -> None:
        self._settings = settings
        self._num_workers = num_workers
        self._resources = {"num_cpus": cpus_per_worker, "num_gpus": gpus_per_worker}
        self._place = place or (lambda rank: {})
        self._start_timeout_s = start_timeout_s
        self._step_timeout_s = step_timeout_s
        self._skips = SkipLimit(settings.max_skipped_steps)
        self._ranks: list[Any] = []
        self._broadcasts: Any = None

    def start(self) -> None:
        """Places the ranks, arranges their rendezvous, loads the model on each.

        Raises:
            DeadlineError: the cluster has no room, or a rank did not get ready in time.
            LearnerError, ConfigError: a rank could not start; the message holds its traceback.
        """
        assert not self._ranks, "a group is started once"
        deadline = time.monotonic() + self._start_timeout_s
        actor, gpus = ray.remote(LearnerRank), self._resources["num_gpus"]
        self._ranks = [
            actor.options(max_restarts=0, **(self._resources | self._place(rank))).remote(rank, self._num_workers, gpus)
            for rank in range(self._num_workers)
        ]
        with self._fatal():
            places = self._placed(deadline)
            _, address, port = places[0]
            local = local_ranks([node for node, _, _ in places])
            calls = {
                number: rank.start.remote(self._settings, address, port, *local[number])
                for number, rank in enumerate(self._ranks)
            }
            wait_all(calls, deadline - time.monotonic(), "start")

    def train_step(self, plan: PackPlan, segment_refs: Sequence[SegmentRef]) -> StepResult:
        """One optimizer step on the planned packs.

        Args:
            plan: positions into `segment_refs`.
            segment_refs: Segments in the object store; each rank fetches only the groups of its own.

        Raises:
            SegmentsLost: objects are gone; nothing was trained, and the group is whole.
            NonFiniteError: one step more than `max_skipped_steps` in a row was skipped.
        """
        for number, packs in enumerate(plan.micro_batches):
            if len(packs) != self._num_workers:
                raise ContractError(
                    f"micro-batch {number} of the pack plan has {len(packs)} packs for {self._num_workers} learner "
                    "ranks; plan with num_ranks = cluster.num_learners"
                )
        shares = [
            [[segment_refs[position] for position in packs[rank]] for packs in plan.micro_batches]
            for rank in range(self._num_workers)
        ]
        with self._fatal():
            lost = self._fetch(shares)
            if not lost:
                calls = {number: rank.train_step.remote() for number, rank in enumerate(self._alive("train_step"))}
                result = combine(wait_all(calls, self._step_timeout_s, "train_step"))
                self._skips.note(result)
                return result
        positions = tuple(position for position, segment in enumerate(segment_refs) if segment.group in lost)
        raise SegmentsLost(
            f"{len(positions)} of {len(segment_refs)} segments are no longer in the object store (the first at "
            f"position {positions[0]}): the node that held them is gone; their records must be requested again",
            positions,
        )

    def _fetch(self, shares: Sequence[Sequence[Sequence[SegmentRef]]]) -> set[ray.ObjectRef]:
        """Every rank gets its segments; the groups that are no longer in the object store."""
        limit = self._step_timeout_s
        calls = {
            number: rank.fetch.remote(shares[number], limit) for number, rank in enumerate(self._alive("train_step"))
        }
        return {ref for refs in wait_all(calls, limit, "fetch") for ref in refs}

    def publish(self, version: int, full: bool) -> tuple[WeightsManifest, list[ray.ObjectRef]]:
        """Merged weights as buckets in the object store, and the manifest that describes them.

        The buckets come out of a streaming generator, so this process owns them: they outlive a dead rank 0, and are
        freed when the driver drops the references.

        Args:
            full: all tensors of the checkpoint; else those of the layers that training can change.
        """
        first, *others = self._alive("publish")
        with self._fatal():
            stream = first.publish.options(num_returns="streaming").remote(version, full)
            calls = {number: rank.join_publish.remote(version, full) for number, rank in enumerate(others, start=1)}
            refs = list(drain(stream, list(calls.values()), self._step_timeout_s, "publish"))
            # The stream's last reference holds the manifest, or the error that ended it.
            wait_all({**dict(enumerate(refs[-1:])), **calls}, self._step_timeout_s, "publish")
            manifest: WeightsManifest = ray.get(refs[-1])
        return manifest, refs[:-1]

    def rendezvous(self) -> tuple[str, int]:
        """Address of rank 0 and a free port there."""
        first, *_ = self._alive("rendezvous")
        with self._fatal():
            _, address, port = wait_all({0: first.where.remote()}, self._step_timeout_s, "rendezvous")[0]
        return address, port

    def broadcast(self, version: int, full: bool, group: SyncGroup) -> WeightsManifest:
        """The manifest of a publish that rank 0 broadcasts from now on, while the engines are told to receive it.

        The learner's next call waits until the broadcast has ended, well or by its deadline. How it ended is logged
        then: a failure is the engines', who do not attest, and not the learner's.
        """
        first, *others = self._alive("publish")
        with self._fatal():
            self._log_broadcast()
            stream = first.publish.options(num_returns="streaming").remote(version, full, group)
            calls = {number: rank.join_publish.remote(version, full) for number, rank in enumerate(others, start=1)}
            head = list(islice(drain(stream, list(calls.values()), self._step_timeout_s, "publish"), 1))
            wait_all({**dict(enumerate(head)), **calls}, self._step_timeout_s, "publish")
            manifest: WeightsManifest = ray.get(head[0])
        self._broadcasts = stream
        return manifest

    def _log_broadcast(self) -> None:
        """What became of the broadcast before."""
        if self._broadcasts is not None:
            for ref in drain(self._broadcasts, [], self._step_timeout_s, "the broadcast before"):
                if failure := ray.get(ref):
                    log.warning("a broadcast of weights failed: %s", failure)
        self._broadcasts = None

    def save_checkpoint(self, path: Path, extra: dict[str, Any]) -> None:
        """Writes everything a resumed run needs, and `extra` beside it, under `path`; see `learner.checkpoint`."""
        with Checkpoint.writing(path, self._num_workers, self._settings.zero_stage, extra) as folder:
            self._everywhere(lambda rank: rank.save_checkpoint.remote(folder), "save_checkpoint")
            merged = folder / "merged"
            merged.mkdir()
            self._everywhere(lambda rank: rank.export_merged.remote(merged), "export_merged")

    def load_checkpoint(self, path: Path) -> dict[str, Any]:
        """Restores all ranks; returns the `extra` that was saved."""
        path = path.absolute()
        checkpoint = Checkpoint.read(path)
        checkpoint.check_shape(path, self._num_workers, self._settings.zero_stage)
        self._everywhere(lambda rank: rank.load_checkpoint.remote(path), "load_checkpoint")
        return checkpoint.extra

    def close(self) -> None:
        """Kills the ranks; safe to call twice and on a group that never started."""
        for rank in self._ranks:
            ray.kill(rank, no_restart=True)
        self._ranks = []

    def _placed(self, deadline: float) -> list[tuple[str, str, int]]:
        calls = [rank.where.remote() for rank in self._ranks]
        try:
            return wait_all(dict(enumerate(calls)), deadline - time.monotonic(), "placement")
        except DeadlineError as error:
            raise DeadlineError(
                f"cluster.num_learners: the cluster did not place {self._num_workers} learner ranks of "
                f"{self._resources} within {self._start_timeout_s:.0f} s; free resources are "
                f"{ray.available_resources()}; ask for less, or add machines"
            ) from error

    def _everywhere(self, call: Callable[[Any], ray.ObjectRef], what: str) -> None:
        with self._fatal():
            calls = {number: call(rank) for number, rank in enumerate(self._alive(what))}
            wait_all(calls, self._step_timeout_s, what)

    def _alive(self, what: str) -> list[Any]:
        if not self._ranks:
            raise LearnerError(f"{what}: the learner group is closed; start a new one from the last checkpoint")
        return self._ranks

    @contextlib.contextmanager
    def _fatal(self) -> Iterator[None]:
        """Whatever happens to one rank ends the group: the others may wait for it in a collective for ever."""
        try:
            yield
        except BaseException:
            self.close()
            raise
