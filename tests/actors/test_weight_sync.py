"""Who waits for engines that load: only who cannot do without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from actors.loop import LoopState
from protocol.contracts import RolloutRequest
from protocol.errors import EngineError, Interrupted
from protocol.weights import SyncGroup, WeightsManifest
from tests.actors.test_controller import FakePool, Loop, build

POLLS_TO_LOAD = 50
"""More than a window's answers take."""
AWAITED = ["train 4", "attested 1", "train 4", "attested 2", "train 4", "attested 3"]
TRAINED_AHEAD = ["train 4", "train 4", "attested 1", "train 4", "attested 2", "attested 3"]
GROUP = SyncGroup(generation=1, address="here", port=1, world_size=2, offsets={"actor-0": 1}, timeout_s=1)


class SlowToLoad(FakePool):
    """Attests some polls after a publish."""

    polls_left = 0

    def publish(self, manifest: WeightsManifest, refs: Sequence[Any]) -> None:
        assert self.synced, "a version was published while the one before was on its way"
        super().publish(manifest, refs)
        self.polls_left = POLLS_TO_LOAD

    def submit(self, requests: Sequence[RolloutRequest]) -> None:
        assert self.synced, "the first engine to attest would get all of these requests"
        super().submit(requests)

    def poll(self, timeout_s: float = 1.0) -> list[Any]:
        self.polls_left -= timeout_s >= 1.0  # shorter ones are of a learner that works, and as many as it takes
        return super().poll(timeout_s)

    @property
    def synced(self) -> bool:  # type: ignore[override]
        return self.polls_left <= 0


def slow_to_load(*, group: SyncGroup | None = None, **settings: Any) -> Loop:
    """A loop whose log tells when a version is attested, and when something is trained or evaluated."""
    loop = build(**settings)
    loop.controller._pool.__class__ = SlowToLoad
    event, publish = loop.observer.event, loop.learner.publish

    def told(kind: str, **fields: Any) -> None:
        if kind == "publish" and fields["version"]:
            loop.log.append(f"attested {fields['version']}")
        event(kind, **fields)

    def to_group(version: int, full: bool) -> tuple[WeightsManifest, list[Any]]:
        manifest, refs = publish(version, full)
        return replace(manifest, group=group), refs

    loop.observer.event = told  # type: ignore[method-assign]
    loop.learner.publish = to_group  # type: ignore[method-assign]
    return loop


def order(loop: Loop) -> list[str]:
    return [line for line in loop.log if line.startswith(("train", "saved", "attested"))]


@pytest.mark.parametrize("max_staleness", [1, 2])
def test_the_next_window_is_trained_while_the_engines_load(max_staleness: int) -> None:
    loop = slow_to_load(max_staleness=max_staleness)
    loop.controller.run()

    assert order(loop) == TRAINED_AHEAD
    assert max(metrics["policy/staleness_max"] for _, metrics in loop.observer.steps) <= max_staleness


@pytest.mark.parametrize(
    "settings",
    [{"max_staleness": 0}, {"max_staleness": 1, "takes_turns": True}, {"max_staleness": 1, "group": GROUP}],
    ids=["on-policy", "one device", "broadcast"],
)
def test_a_version_is_awaited_where_learner_and_engines_need_each_other(settings: dict[str, Any]) -> None:
    loop = slow_to_load(**settings)
    loop.controller.run()
    assert order(loop) == AWAITED


def test_what_is_told_of_a_publish_holds_its_checksums_once_however_many_engines_attest_them() -> None:
    loop, told = build(), []
    loop.observer.event = lambda kind, **fields: told.append(fields) if kind == "publish" else None  # type: ignore[method-assign]
    loop.controller.run()
    assert told[1]["checksums"] == ("c",)
    assert [sorted(engine) for engine in told[1]["engines"]] == [["ended", "name", "seconds"]]


def test_an_evaluation_waits_for_the_version_that_it_is_about() -> None:
    loop = slow_to_load(max_staleness=1, validation=2, eval_steps=1)
    loop.controller.run()
    assert order(loop) == AWAITED
    assert [step for step, _ in loop.controller.state.evaluations] == [0, 1, 2, 3]


def test_a_steps_metrics_tell_the_engines_part_of_the_version_that_was_attested_last() -> None:
    loop = slow_to_load(max_staleness=1)
    pool = loop.controller._pool
    publish = pool.publish

    def timed(manifest: WeightsManifest, refs: Sequence[Any]) -> None:
        publish(manifest, refs)
        pool.reports = [replace(report, load_seconds=10.0 + manifest.version) for report in pool.reports]

    pool.publish = timed  # type: ignore[method-assign]
    loop.controller.run()
    told = [(metrics["policy/version"], metrics["sync/load_s"]) for _, metrics in loop.observer.steps]
    assert told == [(1.0, 10.0), (2.0, 11.0), (3.0, 12.0)]


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_run_that_is_asked_to_stop_does_not_wait_for_engines_that_do_not_come_back(max_staleness: int) -> None:
    loop = slow_to_load(max_staleness=max_staleness, max_steps=5)
    train = loop.learner.train_step

    def gone(plan: Any, segment_refs: Sequence[Any]) -> Any:
        if len(loop.learner.trained) == 1:
            loop.controller.stop = True
            loop.controller._pool.polls_left = 10**9  # type: ignore[attr-defined]
        return train(plan, segment_refs)

    loop.learner.train_step = gone  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="step 2, version 2"):
        loop.controller.run()
    assert [window.last_step for window in loop.observer.windows] == [1, 2]
    assert [(saved["step"], saved["version"]) for saved, _ in loop.keeper.saved] == [(2, 2)]


class GoneInLoad(SlowToLoad):
    """The last engine is given up while it loads version 2."""

    def poll(self, timeout_s: float = 1.0) -> list[Any]:
        if self.version == 2 and not self.synced:
            raise EngineError("0 of 1 actors are left")
        return super().poll(timeout_s)


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_engines_that_end_the_run_in_a_load_leave_a_checkpoint_that_fits_its_files(max_staleness: int) -> None:
    loop = slow_to_load(max_staleness=max_staleness, max_steps=6)
    loop.controller._pool.__class__ = GoneInLoad
    with pytest.raises(EngineError, match="0 of 1 actors"):
        loop.controller.run()
    ((saved, position),) = loop.keeper.saved
    assert (saved["step"], saved["version"]) in {(2, 2), (3, 3)}
    assert [window.last_step for window in loop.observer.windows] == [*range(1, saved["step"] + 1)]
    assert [step for step, _ in loop.observer.steps] == [*range(1, saved["step"] + 1)]
    assert saved["trained"] == position == 4 * saved["step"]


def stop_in_the_merge(loop: Loop) -> None:
    """Runs it, and asks it to stop while the learner merges version 2."""
    publish = loop.learner.publish

    def merge(version: int, full: bool) -> tuple[WeightsManifest, list[Any]]:
        loop.controller.stop |= version == 2
        return publish(version, full)

    loop.learner.publish = merge  # type: ignore[method-assign]
    with pytest.raises(Interrupted, match="step 2, version 2"):
        loop.controller.run()


def test_a_broadcast_that_has_begun_is_told_to_the_engines_also_when_the_run_ends() -> None:
    """The learner's rank waits for them, and would keep the checkpoint waiting."""
    loop = slow_to_load(max_staleness=1, group=GROUP, max_steps=5)
    stop_in_the_merge(loop)
    assert [line for line in loop.log if line.startswith("sync 2")]


@pytest.mark.parametrize("takes_turns", [False, True])
def test_what_is_merged_when_the_run_is_asked_to_stop_is_not_sent(takes_turns: bool) -> None:
    """The learner saves next, perhaps on the device on which the engines would load."""
    loop = slow_to_load(max_staleness=0, takes_turns=takes_turns, max_steps=5)
    stop_in_the_merge(loop)
    assert not [line for line in loop.log if line.startswith("sync 2")]
    assert [(saved["step"], saved["version"]) for saved, _ in loop.keeper.saved] == [(2, 2)]


def test_a_checkpoint_does_not_wait_for_engines() -> None:
    loop = slow_to_load(max_staleness=1, max_steps=4)
    loop.keeper.every = 1
    keep = loop.keeper.snapshot

    def save(state: LoopState, position: int) -> Callable[[], str]:
        loop.log.append(f"saved {state.version}")
        return keep(state, position)

    loop.keeper.snapshot = save  # type: ignore[method-assign]
    loop.controller.run()
    assert order(loop)[:3] == ["train 4", "saved 1", "train 4"]


def test_an_engine_that_comes_back_while_rollouts_are_awaited_gets_the_version_that_was_broadcast() -> None:
    """The others would go on without it, and a run of one engine would wait for ever."""
    loop = build(max_steps=1)
    pool, published = loop.controller._pool, loop.learner.publish
    versions: list[tuple[int, bool]] = []

    def publish(version: int, full: bool) -> tuple[WeightsManifest, list[Any]]:
        versions.append((version, full))
        pool.awaits_full = False  # type: ignore[misc]
        return published(version, full)

    returns = iter([True])  # while the first rollouts are awaited, an actor comes back

    def phase(name: str, waiting_for: str) -> None:
        if name == "rollout":
            pool.awaits_full = next(returns, False)  # type: ignore[misc]

    loop.learner.publish, loop.observer.phase = publish, phase  # type: ignore[method-assign]
    loop.controller.run()
    assert versions == [(0, True), (0, True), (1, False)]


def test_an_engine_that_comes_back_while_a_version_is_attested_gets_it_once_more() -> None:
    """Else its attestation would be awaited for ever."""
    loop = build(max_steps=1)
    pool, published = loop.controller._pool, loop.learner.publish
    versions: list[tuple[int, bool]] = []
    waits = iter(range(1, 10))

    def publish(version: int, full: bool) -> tuple[WeightsManifest, list[Any]]:
        versions.append((version, full))
        pool.awaits_full, pool.synced = False, True  # type: ignore[misc]
        return published(version, full)

    def phase(name: str, waiting_for: str) -> None:
        if waiting_for == "version 1 on every engine" and next(waits) == 1:
            pool.awaits_full, pool.synced = True, False  # type: ignore[misc]

    loop.learner.publish, loop.observer.phase = publish, phase  # type: ignore[method-assign]
    loop.controller.run()
    assert versions == [(0, True), (1, False), (1, True)]


def test_a_publish_tells_how_long_the_learner_took_and_how_long_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The timeline draws both."""
    loop, now, told = build(max_steps=1), 0.0, []
    learner_publish, pool_publish = loop.learner.publish, loop.controller._pool.publish

    def merged(version: int, full: bool) -> tuple[WeightsManifest, list[Any]]:
        nonlocal now
        now += 2.0
        return learner_publish(version, full)

    def loaded(manifest: WeightsManifest, refs: Sequence[Any]) -> None:
        nonlocal now
        now += 3.0
        pool_publish(manifest, refs)

    def tell(kind: str, **fields: Any) -> None:
        if kind == "publish":
            told.append((fields["version"], fields["learner_s"], fields["seconds"]))

    monkeypatch.setattr("actors.weight_sync.time", SimpleNamespace(monotonic=lambda: now))
    loop.learner.publish, loop.controller._pool.publish = merged, loaded  # type: ignore[method-assign]
    loop.observer.event = tell  # type: ignore[method-assign]
    loop.controller.run()
    assert told == [(0, 2.0, 5.0), (1, 2.0, 5.0)]
