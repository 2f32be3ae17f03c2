"""A version's way from the learner to every engine.

    learner.publish ──► on its way ──► attested by every live engine: admission counts with it
     (merge, put)        (fetch, load, resume)

| who waits | for what | who ends the wait |
|---|---|---|
| `publish` | the learner's merged weights | the learner group, within its `step_timeout_s` |
| `settle` | every engine's attestation | the engines; the pool's deadline, `sync.timeout_s`; a stop of the run |

A version's buckets are a copy, so the learner may train its next window while the engines load, where that window's
rollouts are there already (`max_staleness` above 0). Requests that the version makes room for wait until all live
engines have attested it: else the first to do so would get them all. One version is on its way at most: the next
publish waits for it first. Where learner and engines need each other for the sync, it is awaited at once: they share a
device and take turns, or the learner broadcasts the weights itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from actors.intake import Intake
from actors.learner_thread import LearnerThread
from actors.loop import Learner, LoopSettings, LoopState, Observer
from actors.pool import RolloutPool
from actors.published import check_changed, load_metrics, publish_metrics
from protocol.errors import NothingChangedError
from protocol.weights import WeightsManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class OnItsWay:
    """A version that not every live engine has attested."""

    manifest: WeightsManifest
    started: float
    """Monotonic seconds."""
    learner_s: float


class WeightSync:
    """Publishes, and notices what is attested. The loop's thread calls it."""

    def __init__(
        self,
        settings: LoopSettings,
        pool: RolloutPool,
        learner: Learner,
        intake: Intake,
        observer: Observer,
        state: LoopState,
        learner_thread: LearnerThread,
        is_leaving: Callable[[], bool],
    ) -> None:
        """`is_leaving`: the run ends with this window, and nobody will ask the engines again: it must not depend on
        them any more."""
        self._settings = settings
        self._pool = pool
        self._learner = learner
        self._intake = intake
        self._observer = observer
        self._state = state
        self._learner_thread = learner_thread
        self.is_leaving = is_leaving
        self._on_its_way: OnItsWay | None = None
        self._attested: dict[str, float] = {}
        """Metrics of the version that was attested last."""

    def publish(self, full: bool) -> dict[str, float]:
        """Version v+1 (or v, in full, at the start) is sent to every engine.

        Returns its metrics; where it is still on its way, those of the engines are of the version before.
        """
        if self._settings.skip_publish and not full:
            raise NothingChangedError(
                f"step {self._state.step}: an optimizer step ran and nothing was published "
                "(sync.debug_skip_publish is true); switch it off: the engines still serve the version before"
            )
        self.settle()
        version = self._state.version if full else self._state.version + 1
        published = {} if self.is_leaving() else self._send(version, full)  # a resume sends it, in full
        self._state.version = version
        return {"policy/version": float(version)} | published | self._attested

    def _send(self, version: int, full: bool) -> dict[str, float]:
        self._observer.phase("sync", f"the learner's weights of version {version}")
        started = time.monotonic()
        manifest, refs = self._learner_thread(lambda: self._learner.publish(version, full))
        learner_s = time.monotonic() - started
        check_changed(manifest)
        # A run that ends has no use for it, and its learner saves next, perhaps on the device where they would load. A
        # broadcast has begun with the publish, and must not wait for engines that nobody tells.
        if manifest.group is not None or not self.is_leaving():
            self._pool.publish(manifest, refs)
            self._on_its_way = OnItsWay(manifest=manifest, started=started, learner_s=learner_s)
            if not self._may_train_meanwhile(manifest, full):
                self.settle()
        return publish_metrics(manifest)

    def settle(self) -> None:
        """Waits until every live engine has attested what is on its way, or the run is asked to stop."""
        while self._on_its_way is not None and not self.is_leaving():
            self._observer.phase("sync", f"version {self._on_its_way.manifest.version} on every engine")
            self._learner_thread.take_in()
            self.catch_up()
            self.look()

    def look(self) -> None:
        """Notes an attestation; call it after each poll."""
        on_its_way = self._on_its_way
        if on_its_way is None or not self._pool.synced:
            return
        self._on_its_way = None
        manifest, reports = on_its_way.manifest, self._pool.reports
        self._attested = load_metrics(reports)
        self._observer.event(
            "publish",
            version=manifest.version,
            seconds=time.monotonic() - on_its_way.started,
            learner_s=on_its_way.learner_s,
            checksums=manifest.bucket_checksums,
            engines=[report.as_event() for report in reports],
        )
        self._intake.attested = manifest.version
        if self._settings.max_staleness:
            self._intake.admit()  # while the learner trains, saves or the run is evaluated, the actors work

    def catch_up(self) -> None:
        """An engine that came back cannot read a broadcast of the past: it gets the version once more, in full.
        Called where the learner is idle."""
        if self._pool.awaits_full:
            assert self._pool.published.version is not None
            self._pool.publish(*self._learner.publish(self._pool.published.version, True))

    def leave_device(self) -> None:
        """Before the learner works where it shares a device with the engines: they leave it, until the next publish or
        request."""
        if self._settings.takes_turns:
            self._pool.sleep(last=self.is_leaving())

    def _may_train_meanwhile(self, manifest: WeightsManifest, full: bool) -> bool:
        settings = self._settings
        return settings.max_staleness > 0 and not (full or settings.takes_turns or manifest.group is not None)
