"""The engine's own thread: who is answered when, and what happens to running requests when weights arrive."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from actors.engine import LoadReport
from actors.engine_loop import ADMIT_PER_STEP, Answer, EngineLoop, InFlight
from protocol.contracts import Completion, Record, RequestKey, RolloutRequest
from protocol.errors import EngineError, ImageError, SyncError
from protocol.weights import WeightsManifest


class GatedEngine:
    """Answers have `length` tokens, one a step; a step waits for `gate`, so that a test decides when time passes. To
    prepare a request takes one of `images`."""

    def __init__(self, length: int = 3) -> None:
        self.gate = threading.Semaphore(0)
        self.images = threading.Semaphore(1000)
        self.prepared: list[int] = []
        self.length = length
        self.version = 0
        self.running: dict[RequestKey, list[int]] = {}
        self.loaded_with: list[int] = []
        self.breaks = False
        self.closed = False
        self.asleep = False

    @property
    def num_unfinished(self) -> int:
        return len(self.running)

    def prepare(self, request: RolloutRequest) -> int:
        assert self.images.acquire(timeout=20)
        if request.seed == 13:
            raise ImageError("t:1: cannot read it")
        self.prepared.append(request.key.record)
        return request.key.record

    def submit(self, request: RolloutRequest, prepared: int) -> None:
        assert prepared == request.key.record
        if request.seed == 14:
            raise RuntimeError("device lost")
        self.running[request.key] = []
        self.asleep = False

    def step(self) -> list[Completion]:
        self.gate.acquire(timeout=20)
        if self.breaks:
            raise RuntimeError("device lost")
        done = []
        for key, versions in list(self.running.items()):
            versions.append(self.version)
            if len(versions) == self.length:
                del self.running[key]
                ids = np.zeros(self.length, np.int32)
                done.append(
                    Completion(
                        key=key,
                        prompt_token_ids=ids,
                        token_ids=ids,
                        finish_reason="stop",
                        first_version=versions[0],
                        last_version=versions[-1],
                    )
                )
        return done

    def load_weights(self, manifest: WeightsManifest, buckets: Any) -> LoadReport:
        if manifest.version == 99:
            raise SyncError("version 99: wrong checksum")
        self.loaded_with.append(self.num_unfinished)
        self.version = manifest.version
        return LoadReport(version=self.version, bucket_checksums=(), load_seconds=0.0)

    def abort_all(self) -> None:
        self.running.clear()

    def sleep(self) -> None:
        assert not self.running
        self.asleep = True

    def close(self) -> None:
        self.closed = True

    def pass_steps(self, count: int) -> None:
        for _ in range(count):
            self.gate.release()


Running = tuple[GatedEngine, EngineLoop, "queue.Queue[tuple[RolloutRequest, Answer]]"]


@pytest.fixture
def running() -> Iterator[Running]:
    engine, answers = GatedEngine(), queue.Queue[tuple[RolloutRequest, Answer]]()
    loop = EngineLoop(lambda: engine)
    loop.start()
    yield engine, loop, answers
    engine.pass_steps(100)
    loop.close()
    assert engine.closed


@pytest.fixture
def caller() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as threads:
        yield threads


def request(number: int, seed: int = 0) -> RolloutRequest:
    record = Record(index=number, source=f"t:{number}", images=("x.png",), width=8, height=8, objects=())
    return RolloutRequest(key=RequestKey(number, 0), record=record, seed=seed)


def manifest(version: int) -> WeightsManifest:
    return WeightsManifest(version=version, full=True, tensors=(), bucket_checksums=(), changed_tensors=1)


def submit(to: Running, *requests: RolloutRequest) -> None:
    _, loop, answers = to
    loop.submit(requests, lambda asked, answer: answers.put((asked, answer)))


def answer(to: Running) -> Completion:
    _, found = to[2].get(timeout=20)
    assert isinstance(found, Completion), found
    return found


def until(condition: Callable[[], bool]) -> None:
    """Waits for the engine's thread to get there."""
    waiting = threading.Event()
    for _ in range(2000):
        if condition():
            return
        waiting.wait(0.005)
    raise AssertionError("the engine's thread did not get there")


def test_calls_share_the_running_batch_and_each_gets_its_own_answers(running: Running) -> None:
    engine, loop, _ = running
    engine.length = 5
    submit(running, request(0))
    until(lambda: loop.progress.running == 1)
    engine.pass_steps(1)
    until(lambda: loop.progress.num_steps == 1)
    submit(running, request(1))
    engine.pass_steps(1)
    until(lambda: engine.prepared == [0, 1])
    engine.pass_steps(6)

    assert [answer(running).key.record, answer(running).key.record] == [0, 1]
    until(lambda: loop.progress.num_steps == 8)  # 10, if the second request ran after the first and not beside it


@pytest.mark.parametrize(
    ("in_flight", "versions", "loaded_with"),
    [("drain", (0, 0), 0), ("continue", (0, 1), 1), ("abort", (1, 1), 0)],
)
def test_weights_arrive_between_two_steps_of_a_running_request(
    running: Running, caller: ThreadPoolExecutor, in_flight: InFlight, versions: tuple[int, int], loaded_with: int
) -> None:
    engine, loop, _ = running
    submit(running, request(0))
    until(lambda: loop.progress.running == 1)
    engine.pass_steps(1)
    until(lambda: loop.progress.num_steps == 1)
    load = caller.submit(loop.load_weights, manifest(1), [], in_flight)
    until(lambda: loop._loads or loop._inbox.qsize() == 1)
    engine.pass_steps(10)

    assert load.result(20).version == 1
    found = answer(running)
    assert (found.first_version, found.last_version) == versions
    assert engine.loaded_with == [loaded_with]


def test_a_request_that_is_not_begun_waits_for_the_weights_that_are_asked_for(
    running: Running, caller: ThreadPoolExecutor
) -> None:
    engine, loop, _ = running
    submit(running, request(0))
    until(lambda: loop.progress.running == 1)
    load = caller.submit(loop.load_weights, manifest(1), [], "drain")
    until(lambda: loop._inbox.qsize() == 1)
    submit(running, request(1))
    engine.pass_steps(1)
    until(lambda: engine.prepared == [0, 1])  # from now on it could be begun
    engine.pass_steps(9)

    assert load.result(20).version == 1
    assert [(a.key.record, a.first_version) for a in (answer(running), answer(running))] == [(0, 0), (1, 1)]


def test_a_large_batch_is_begun_in_shares_so_that_running_requests_go_on(running: Running) -> None:
    engine, loop, _ = running
    submit(running, *(request(i) for i in range(3 * ADMIT_PER_STEP)))
    until(lambda: loop.progress.running == ADMIT_PER_STEP)
    engine.pass_steps(1)
    until(lambda: loop.progress.running == 2 * ADMIT_PER_STEP)
    engine.pass_steps(20)

    assert sorted(answer(running).key.record for _ in range(3 * ADMIT_PER_STEP)) == list(range(3 * ADMIT_PER_STEP))


def test_running_requests_do_not_wait_for_an_image(running: Running) -> None:
    engine, loop, _ = running
    submit(running, request(0))
    until(lambda: loop.progress.running == 1)
    engine.images = threading.Semaphore(0)
    submit(running, request(1))
    engine.pass_steps(3)

    assert answer(running).key.record == 0, "the second one's image is not there yet"
    engine.images.release()
    engine.pass_steps(3)
    assert answer(running).key.record == 1


def test_images_of_the_next_two_admissions_are_prepared_in_order_and_no_others(running: Running) -> None:
    engine, loop, _ = running
    submit(running, *(request(i) for i in range(4 * ADMIT_PER_STEP)))
    until(lambda: loop.progress.running == ADMIT_PER_STEP)
    until(lambda: len(engine.prepared) == 2 * ADMIT_PER_STEP)
    assert engine.prepared == list(range(2 * ADMIT_PER_STEP))
    engine.pass_steps(1)
    until(lambda: len(engine.prepared) == 3 * ADMIT_PER_STEP)
    assert engine.prepared == list(range(3 * ADMIT_PER_STEP))


def test_an_aborted_request_is_prepared_anew(running: Running, caller: ThreadPoolExecutor) -> None:
    engine, loop, _ = running
    submit(running, request(0))
    until(lambda: loop.progress.running == 1)
    load = caller.submit(loop.load_weights, manifest(1), [], "abort")
    until(lambda: loop._inbox.qsize() == 1)
    engine.pass_steps(10)
    assert load.result(20).version == answer(running).first_version == 1
    assert engine.prepared == [0, 0]


def test_a_bad_record_is_answered_alone(running: Running) -> None:
    engine, _, answers = running
    submit(running, request(0, seed=13), request(1))
    engine.pass_steps(5)

    refused, failure = answers.get(timeout=20)
    assert refused.key.record == 0
    assert isinstance(failure, ImageError)
    assert answer(running).key.record == 1


def test_a_load_that_does_not_attest_fails_its_caller_and_the_engine_goes_on(running: Running) -> None:
    engine, loop, _ = running
    with pytest.raises(SyncError, match="wrong checksum"):
        loop.load_weights(manifest(99), [], "drain")
    submit(running, request(0))
    engine.pass_steps(5)
    assert answer(running).first_version == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # its traceback is for the log
def test_an_engine_that_breaks_fails_everyone_who_waits_and_everyone_who_comes_later(
    running: Running, caller: ThreadPoolExecutor, recwarn: pytest.WarningsRecorder
) -> None:
    engine, loop, answers = running
    submit(running, request(0))
    until(lambda: loop.progress.running == 1)
    load = caller.submit(loop.load_weights, manifest(1), [], "drain")
    until(lambda: loop._inbox.qsize() == 1)
    engine.breaks = True
    engine.pass_steps(1)

    assert "device lost" in str(answers.get(timeout=20)[1])
    with pytest.raises(EngineError, match="device lost"):
        load.result(20)
    submit(running, request(1))
    assert isinstance(answers.get(timeout=20)[1], EngineError)
    with pytest.raises(EngineError, match="device lost"):
        loop.load_weights(manifest(2), [], "drain")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_breaks_on_a_request_fails_that_request_as_well(
    running: Running, recwarn: pytest.WarningsRecorder
) -> None:
    submit(running, request(0, seed=14), request(1))
    failed = [running[2].get(timeout=20) for _ in range(2)]
    assert [asked.key.record for asked, _ in failed] == [0, 1]
    assert all(isinstance(error, EngineError) and "device lost" in str(error) for _, error in failed)


def test_what_building_raises_reaches_the_caller_of_start() -> None:
    def build() -> GatedEngine:
        raise OSError("no such model")

    with pytest.raises(OSError, match="no such model"):
        EngineLoop(build).start()


def test_closing_answers_what_is_open_with_an_error(running: Running) -> None:
    engine, loop, answers = running
    submit(running, request(0))
    until(lambda: loop.progress.running == 1)
    with ThreadPoolExecutor(1) as threads:
        closing = threads.submit(loop.close)
        until(lambda: loop._closing)
        engine.pass_steps(1)
        closing.result(20)
    assert isinstance(answers.get(timeout=20)[1], EngineError)


def test_an_engine_leaves_its_device_although_it_owes_answers_and_is_back_for_the_next_request(
    running: Running, caller: ThreadPoolExecutor
) -> None:
    engine, loop, answers = running
    submit(running, *(request(number) for number in range(ADMIT_PER_STEP + 3)))
    until(lambda: loop.progress.running == ADMIT_PER_STEP)
    asleep = caller.submit(loop.sleep)
    until(lambda: loop._inbox.qsize() == 1)
    engine.pass_steps(1)
    asleep.result(20)

    failures = [answers.get(timeout=20)[1] for _ in range(ADMIT_PER_STEP + 3)]
    assert all(isinstance(failure, EngineError) for failure in failures)
    assert (engine.asleep, loop.progress.running, len(loop._waiting)) == (True, 0, 0)
    submit(running, request(20))
    engine.pass_steps(20)
    assert answer(running).key.record == 20
