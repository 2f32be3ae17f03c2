"""What two processes gain on this machine by running side by side, the ceiling of everything that overlaps; and how
many cores are busy.

Virtual cores may be two threads of one physical core, and share caches and memory in any case; then twice the processes
do not do twice the work.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import statistics
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import psutil

from benchmarks.reporting import finish, print_table

WORK = 120
ROUNDS = 5
DEADLINE_S = 300.0


def work() -> float:
    """Seconds for a fixed amount of what engine and learner do: small matrix products, called from Python."""
    import torch

    torch.set_num_threads(1)
    weight, hidden = torch.randn(512, 512), torch.randn(256, 512)
    started = time.perf_counter()
    for _ in range(WORK):
        for _ in range(10):
            hidden = torch.nn.functional.layer_norm(hidden @ weight, (512,))
        sum(len(str(number)) for number in range(3000))
    return time.perf_counter() - started


def _serve(pipe: Connection) -> None:
    work()
    pipe.send("ready")
    while pipe.recv():
        pipe.send(work())


def parallel_gain() -> float:
    """Work per second of two processes, by that of one; 2.0 on two cores that share nothing."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    for pipe in pipes:
        _receive(pipe)
    gains = []
    for _ in range(ROUNDS):
        pipes[0].send(True)
        alone = _receive(pipes[0])
        for pipe in pipes:
            pipe.send(True)
        gains.append(2 * alone / max(_receive(pipe) for pipe in pipes))
    for pipe in pipes:
        pipe.send(False)
    for process in processes:
        process.join(DEADLINE_S)
    return statistics.median(gains)


@contextlib.contextmanager
def busy_cores() -> Iterator[list[tuple[float, float]]]:
    """Fills a list of (Unix seconds, cores of the machine that were busy in the second before)."""
    found: list[tuple[float, float]] = []
    ended = threading.Event()

    def watch() -> None:
        psutil.cpu_percent()  # the first call starts the clock
        while not ended.wait(1.0):
            found.append((time.time(), psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1)))

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield found
    finally:
        ended.set()
        watching.join()


def _receive(pipe: Connection) -> float:
    if not pipe.poll(DEADLINE_S):
        raise TimeoutError(f"waited {DEADLINE_S:.0f} s for a process to do its work; the machine is overloaded")
    return pipe.recv()  # type: ignore[no-any-return]


if __name__ == "__main__":
    gain = parallel_gain()
    print_table("Work per second of two processes, by that of one", ["parallel gain"], [[gain]])
    finish("machine", {"parallel_gain": gain})
