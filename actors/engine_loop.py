"""One thread owns the engine: it builds it, admits requests, steps it, and loads weights between two steps.

    rollout calls ──submit──►  inbox ──► waiting ──admit──► [engine] ──step──► answers, each to the call that asked
    load call ─────────────►   inbox ──► loads when `sync.in_flight` lets it, between two steps
    heartbeats ◄── progress    (plain numbers; the thread writes, anyone reads)

Waiting requests have their images prepared beside the engine's steps (`waiting_requests`).

| who waits | for what | who ends the wait |
|---|---|---|
| a rollout call | its answers | this thread: a completion, a refusal, or the failure that ended the thread |
| a load call | the LoadReport | this thread, after the running requests where they are drained first |
| this thread, idle | the inbox | the next call; `close` |
| this thread, nothing running | the next requests' images | the thread that prepares them |

What an engine's thread cannot end itself (a hang inside a step) the driver ends: heartbeats show that no step was done
within `rollout.request_timeout_s`, and the actor is killed. Requests that are not begun when a load is asked for wait
until the weights are loaded, so that they are as fresh as can be.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from actors.engine import EngineProgress, LoadReport, RolloutEngine
from actors.waiting_requests import WaitingRequests
from protocol.contracts import Completion, RequestKey, RolloutRequest
from protocol.errors import DataFailure, EngineError
from protocol.weights import Bucket, WeightsManifest

InFlight = Literal["drain", "continue", "abort"]
Answer = Completion | DataFailure | EngineError
Deliver = Callable[[RolloutRequest, Answer], None]

ADMIT_PER_STEP = 8
"""Requests begun between two steps: a large batch must not stall those that run while its prompts are taken in."""


@dataclass(frozen=True, slots=True)
class _Rollout:
    requests: Sequence[RolloutRequest]
    deliver: Deliver


@dataclass(frozen=True, slots=True)
class _Load:
    manifest: WeightsManifest
    buckets: Sequence[Bucket]
    in_flight: InFlight
    done: Future[LoadReport] = field(default_factory=Future)


@dataclass(frozen=True, slots=True)
class _Ask:
    question: Callable[[RolloutEngine], Any]
    done: Future[Any] = field(default_factory=Future)


class EngineLoop:
    """Thread-safe face of an engine; every public method may be called from any thread."""

    def __init__(self, build: Callable[[], RolloutEngine], batch_size: int = 1) -> None:
        """`batch_size`: requests of one step, for an engine that decodes whole batches."""
        self._build = build
        self._inbox: queue.SimpleQueue[_Rollout | _Load | _Ask | None] = queue.SimpleQueue()
        self._waiting: WaitingRequests[Deliver] = WaitingRequests(max(ADMIT_PER_STEP, batch_size))
        self._running: dict[RequestKey, tuple[RolloutRequest, Deliver]] = {}
        self._loads: deque[_Load] = deque()
        self._ready: Future[None] = Future()
        self._steps = 0
        self._failure: EngineError | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Builds the engine in its thread; raises what building raised. The caller sets the deadline."""
        self._thread.start()
        self._ready.result()

    def submit(self, requests: Sequence[RolloutRequest], deliver: Deliver) -> None:
        """Queues requests; `deliver` is called once for each, in this loop's thread, and must not block."""
        self._send(_Rollout(requests, deliver))

    def load_weights(self, manifest: WeightsManifest, buckets: Sequence[Bucket], in_flight: InFlight) -> LoadReport:
        """Loads a version between two steps; waits until it is loaded. SyncError when the bytes do not attest."""
        load = _Load(manifest, buckets, in_flight)
        self._send(load)
        return load.done.result()

    def ask(self, question: Callable[[RolloutEngine], Any]) -> Any:
        """Runs `question` on the engine, between two steps, and returns its answer."""
        ask = _Ask(question)
        self._send(ask)
        return ask.done.result()

    def sleep(self) -> None:
        """The engine leaves its device. What it still owes is answered with EngineError: a run that is asked to stop
        does not wait for it."""
        self.ask(self._sleep)

    @property
    def progress(self) -> EngineProgress:
        """What a heartbeat reports."""
        return EngineProgress(num_steps=self._steps, running=len(self._running))

    def close(self) -> None:
        """Ends the thread after the step it is in; what was not answered fails with EngineError. Idempotent."""
        self._closing = True
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _send(self, command: _Rollout | _Load | _Ask) -> None:
        self._inbox.put(command)
        if self._failure is not None:  # the thread may have ended before it could read this
            self._refuse_inbox(self._failure)

    def _run(self) -> None:
        try:
            engine = self._build()
        except BaseException as error:
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        try:
            while not self._closing:
                self._turn(engine)
            self._fail(EngineError("the engine was closed before it answered; its owner ended the actor"))
        except BaseException as error:
            self._fail(error if isinstance(error, EngineError) else EngineError(f"{type(error).__name__}: {error}"))
            raise
        finally:
            self._waiting.close()
            engine.close()

    def _turn(self, engine: RolloutEngine) -> None:
        """Reads the inbox, loads what may be loaded, admits, and does one step."""
        idle = not (self._running or self._waiting or self._loads)
        self._read(engine, block=idle)
        self._waiting.prepare_next(engine.prepare)
        while self._loads and self._may_load(engine):
            self._load(engine, self._loads.popleft())
        if not self._loads:
            self._admit(engine)
        if self._running:
            for completion in engine.step():
                request, deliver = self._running.pop(completion.key)
                deliver(request, completion)
            self._steps += 1

    def _read(self, engine: RolloutEngine, block: bool) -> None:
        while True:
            try:
                command = self._inbox.get(block=block)
            except queue.Empty:
                return
            block = False
            if isinstance(command, _Rollout):
                self._waiting.add((request, command.deliver) for request in command.requests)
            elif isinstance(command, _Load):
                self._loads.append(command)
            elif isinstance(command, _Ask):
                _fulfil(command.done, lambda command=command: command.question(engine))  # type: ignore[misc]

    def _may_load(self, engine: RolloutEngine) -> bool:
        """Whether the next load can run now; `abort` makes it so, `drain` waits, `continue` does not care."""
        mode = self._loads[0].in_flight
        if mode == "abort" and self._running:
            engine.abort_all()
            self._waiting.give_back(self._running.values())
            self._running.clear()
        return mode == "continue" or not self._running

    def _load(self, engine: RolloutEngine, load: _Load) -> None:
        _fulfil(load.done, lambda: engine.load_weights(load.manifest, load.buckets))
        self._steps += 1

    def _sleep(self, engine: RolloutEngine) -> None:
        if self._running:
            engine.abort_all()
        self._give_up(EngineError("the engine left its device before it answered; the run was asked to stop"))
        engine.sleep()

    def _admit(self, engine: RolloutEngine) -> None:
        for request, deliver, prepared in self._waiting.take(idle=not self._running):
            self._running[request.key] = (request, deliver)
            try:
                engine.submit(request, prepared.result())
            except DataFailure as failure:
                del self._running[request.key]
                deliver(request, failure)

    def _fail(self, error: EngineError) -> None:
        """Tells everyone who waits; later calls are told at once."""
        self._failure = error
        self._give_up(error)
        for load in self._loads:
            load.done.set_exception(error)
        self._refuse_inbox(error)

    def _give_up(self, error: EngineError) -> None:
        """The answer of every request that runs or waits."""
        for request, deliver in [*self._running.values(), *self._waiting.take_all()]:
            deliver(request, error)
        self._running.clear()

    def _refuse_inbox(self, error: EngineError) -> None:
        while True:
            try:
                command = self._inbox.get_nowait()
            except queue.Empty:
                return
            if isinstance(command, _Rollout):
                for request in command.requests:
                    command.deliver(request, error)
            elif command is not None:
                command.done.set_exception(error)


def _fulfil(done: Future[Any], work: Callable[[], Any]) -> None:
    """The caller of a load or a question gets its error; the engine's thread goes on."""
    try:
        done.set_result(work())
    except Exception as error:
        done.set_exception(error)
