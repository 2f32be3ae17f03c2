"""Weight sync: bytes per second from the learner's memory to loaded views, beside three other ways of doing it.

    python -m benchmarks.weight_sync [--gigabytes 0.5 2 4] [--receivers 1 2] [--rounds 5] [--write]

A learner process holds bf16 tensors: the 713 of a 4B Qwen3-VL, in its shapes, scaled to the size asked for. Receivers
are processes of their own. Ways:

    sync         the product's path: `learner.publisher` in a streaming generator → object store → one call per
                 receiver → `actors.weight_buckets`, checks and views. Digests are computed on both sides.
    torch calls  one Ray call per tensor and receiver, each answered before the next is made, with the torch tensor as
                 its argument: as such loops are usually written. No digests.
    calls        the same with a numpy array over the tensor's memory, which Ray transports best: the harder rival. What
                 it loses per call weighs less the larger the tensors are.
    file         safetensors `save_file` into /dev/shm, then `load_file` in every receiver. No digests.
    memcpy       the learner copies all its tensors once into a warm buffer, on one thread.

*Loaded views* means: every receiver holds torch tensors of the right name, dtype and shape over bytes that it can read;
the clock stops when the last receiver says so. Where the table says *copied*, each receiver has also copied every
tensor into a parameter of its shape, which is what a model's loader does next. Ways alternate within a round, the first
round warms up, medians of the others count. The store holds two versions at a time, as in production, where the memory
allows it, else one (*held*); a size that does not fit even so is skipped and says so.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import psutil
import ray

from benchmarks.reporting import finish, print_table
from benchmarks.weight_processes import Learner, Receiver
from protocol.weights import WeightsManifest

BARS = {"memcpy": 0.4, "calls": 5.0, "torch_calls": 5.0, "file": 1.0}
"""Least ratio of the sync's rate to that of each other way."""
STORE_ROOM = 1.3
"""Size of the object store, in versions for each that is held."""


class Bench:
    """One size and number of receivers; every way as a method that returns (seconds to views, seconds to copies)."""

    def __init__(self, num_bytes: int, num_receivers: int, held: int, shm: Path) -> None:
        self.learner = ray.remote(Learner).options(num_cpus=0).remote(num_bytes)
        self.num_tensors, self.num_bytes, shapes = ray.get(self.learner.describe.remote())
        receiver = ray.remote(Receiver).options(num_cpus=0)
        self.receivers = [receiver.remote(shapes) for _ in range(num_receivers)]
        self._file = shm / "weights.safetensors"
        self._version = 0
        self._held: list[Any] = []
        self._holds_two = held == 2
        self.phases: list[dict[str, float]] = []

    def _everywhere(self, method: str, *arguments: Any) -> list[Any]:
        return ray.get([getattr(receiver, method).remote(*arguments) for receiver in self.receivers])

    def _timed_copy(self, started: float) -> tuple[float, float]:
        views = time.perf_counter() - started
        self._everywhere("copy")
        return views, time.perf_counter() - started

    def sync(self) -> tuple[float, float]:
        self._version += 1
        started = time.perf_counter()
        refs = list(self.learner.publish.options(num_returns="streaming").remote(self._version))
        manifest: WeightsManifest = ray.get(refs.pop())
        published = time.perf_counter() - started
        loads = self._everywhere("load", manifest, refs)
        seconds = self._timed_copy(started)
        # As production does: the version before goes only now. Where the store has no room for two, this one goes while
        # the other ways are timed, because Ray takes a while to free what nobody holds.
        self._held = refs if self._holds_two else []
        self.phases.append(
            {
                "merge_s": manifest.extra["merge_s"],
                "put_s": manifest.extra["put_s"],
                "publish_s": published,
                "fetch_s": max(fetch for fetch, _ in loads),
                "load_s": max(load for _, load in loads),
            }
        )
        return seconds

    def calls(self) -> tuple[float, float]:
        started = time.perf_counter()
        ray.get(self.learner.send_each.remote(self.receivers, False))
        return self._timed_copy(started)

    def torch_calls(self) -> tuple[float, float]:
        started = time.perf_counter()
        ray.get(self.learner.send_each.remote(self.receivers, True))
        return self._timed_copy(started)

    def file(self) -> tuple[float, float]:
        started = time.perf_counter()
        ray.get(self.learner.save.remote(str(self._file)))
        self._everywhere("load_file", str(self._file))
        return self._timed_copy(started)

    def memcpy(self) -> tuple[float, float]:
        seconds: float = ray.get(self.learner.memcpy.remote())
        return seconds, seconds

    def round(self) -> dict[str, tuple[float, float]]:
        """Every way once; what one leaves behind is dropped before the next."""
        found = {}
        for name in ("memcpy", "sync", "calls", "torch_calls", "file"):
            found[name] = getattr(self, name)()
            self._everywhere("forget")
        self._file.unlink()
        return found

    def close(self) -> None:
        for actor in (self.learner, *self.receivers):
            ray.kill(actor)


def measure(num_bytes: int, num_receivers: int, held: int, rounds: int, shm: Path) -> dict[str, Any]:
    """Medians of one size, as rates and ratios."""
    bench = Bench(num_bytes, num_receivers, held, shm)
    times = [bench.round() for _ in range(rounds + 1)][1:]
    rates = {
        name: [bench.num_bytes / statistics.median(one[name][at] for one in times) / 1e9 for at in (0, 1)]
        for name in times[0]
    }
    ratios = {
        name: statistics.median(one[name][0] / one["sync"][0] for one in times) for name in times[0] if name != "sync"
    }
    phases = {name: statistics.median(one[name] for one in bench.phases[1:]) for name in bench.phases[0]}
    bench.close()
    return {
        "gigabytes": bench.num_bytes / 1e9,
        "tensors": bench.num_tensors,
        "receivers": num_receivers,
        "held": held,
        "views_gb_per_s": {name: rate for name, (rate, _) in rates.items()},
        "copied_gb_per_s": {name: rate for name, (_, rate) in rates.items() if name != "memcpy"},
        "sync_rate_over": ratios,
        "bars_met": {name: ratios[name] >= bar for name, bar in BARS.items()},
        "phases_s": phases,
    }


@contextlib.contextmanager
def local_ray(object_store_bytes: int) -> Iterator[Path]:
    """A cluster of its own with this object store; yields a folder in /dev/shm. Both end with the context."""
    scratch = tempfile.mkdtemp(prefix="rm-", dir="/tmp")  # Unix sockets want a short path
    environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    try:
        ray.init(
            address="local",
            num_cpus=2,
            object_store_memory=object_store_bytes,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=scratch,
            runtime_env={"env_vars": environment | {"VLLM_LOGGING_LEVEL": "ERROR"}},
        )
        with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="rm-") as shm:
            yield Path(shm)
    finally:
        ray.shutdown()
        shutil.rmtree(scratch, ignore_errors=True)


def memory_needed(num_bytes: float, num_receivers: int, held: int) -> float:
    """The learner's tensors, a full object store, the file; in each receiver a parameter per shape, and the tensors
    that a call brings, which are its own; and the share of the memory at whose use Ray kills processes."""
    processes = (1 + 0.8 * num_receivers) * 1e9
    kept_free = 0.05 * psutil.virtual_memory().total
    return num_bytes * (1 + STORE_ROOM * held + 1 + 1.2 * num_receivers) + processes + kept_free


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[0.5])
    parser.add_argument("--receivers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    results, skipped = [], []
    for gigabytes, receivers in product(arguments.gigabytes, arguments.receivers):
        free = psutil.virtual_memory().available
        held = 2 if memory_needed(gigabytes * 1e9, receivers, 2) <= free else 1
        if (needed := memory_needed(gigabytes * 1e9, receivers, held)) > free:
            why = f"needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"
            print(f"skipped: {gigabytes:g} GB to {receivers} receivers {why}")
            skipped.append({"gigabytes": gigabytes, "receivers": receivers, "why": why})
            continue
        with local_ray(int(gigabytes * held * STORE_ROOM * 1e9) + 10**8) as shm:
            results.append(measure(int(gigabytes * 1e9), receivers, held, arguments.rounds, shm))
    ways = ("sync", "memcpy", "calls", "torch_calls", "file")
    for title, key, columns in (
        ("GB/s from the learner's memory to loaded views", "views_gb_per_s", ways),
        ("GB/s from the learner's memory to copied parameters", "copied_gb_per_s", (ways[0], *ways[2:])),
        ("How many times as fast the sync is, to loaded views", "sync_rate_over", ways[1:]),
    ):
        rows = [
            [round(one["gigabytes"], 2), one["receivers"], one["held"], *(one[key][way] for way in columns)]
            for one in results
        ]
        print_table(title, ["GB", "receivers", "held", *columns], rows)
    finish("weight_sync", {"sizes": results, "skipped": skipped, "bars": BARS}, write=arguments.write)


if __name__ == "__main__":
    main()
