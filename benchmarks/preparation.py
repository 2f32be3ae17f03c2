"""What preparing images costs an engine: between its steps, or beside them in a thread of its own.

    python -m benchmarks.preparation [--sizes 640x480 1024x768 1536x1152] [--write]

*Prepare* (read a JPEG, decode, cut into patches, tokenize) and *submit* are those of the real vLLM engine with the
demo's processor, per image, each image new. *Stall* is how long running requests wait where eight are admitted between
two steps: with both done there, and with submitting alone.

*Answers/s* runs the actor's own loop on these real preparations and a **simulated** engine: steps of 35 ms (what an
eager 4B engine took on an H100, `benchmarks/results/model_sizes.json`) in which the thread waits as for a GPU, 64
answers of 200 tokens at once, about what COCO's images take. The longer the answers and the fewer at once, the less
there is to gain; and a real eager step holds Python's lock for part of its time, so that this is the most.
"""

from __future__ import annotations

import argparse
import os
import queue
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.engine_loop import ADMIT_PER_STEP, EngineLoop
from actors.scripted_engine import Pace, ScriptedEngine
from actors.simulation import CharCodec
from benchmarks.engines import demo_settings, draw_requests, open_engine
from benchmarks.reporting import finish, print_table
from protocol.contracts import Completion, RolloutRequest

STEP_S = 0.035
AT_ONCE = 64
ANSWER_TOKENS = 200
REQUESTS = 3 * AT_ONCE
TIMED = 24
"""Images whose preparation is timed alone."""
TIMEOUT_S = 300.0


class Simulated(ScriptedEngine):
    """Waits as long as a GPU's steps take; prepares what the real engine would be given."""

    def __init__(self, real: Any, beside: bool) -> None:
        answer, pace = "x" * (ANSWER_TOKENS - 1), Pace(token_s=STEP_S)
        super().__init__(CharCodec(), lambda *_: answer, tokens_per_step=1, max_num_seqs=AT_ONCE, pace=pace)
        self._real, self._beside = real, beside

    def prepare(self, request: RolloutRequest) -> list[int]:
        if self._beside:
            self._real.prepare(request)
        return super().prepare(request)

    def submit(self, request: RolloutRequest, prepared: list[int]) -> None:
        if not self._beside:
            self._real.prepare(request)
        super().submit(request, prepared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", nargs="+", default=["640x480", "1024x768", "1536x1152"])
    parser.add_argument("--write", action="store_true")
    sizes = parser.parse_args().sizes
    real = demo_engine()
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(real, size, Path(folder)) for size in sizes]
    real.close()
    print_table(
        f"An image's cost, real; running requests' wait where {ADMIT_PER_STEP} are admitted between two steps",
        ["image", "prepare ms", "submit ms", "stall between, ms", "stall beside, ms"],
        [
            [row[name] for name in ("image", "prepare_ms", "submit_ms", "stall_between_ms", "stall_beside_ms")]
            for row in rows
        ],
    )
    print_table(
        f"Answers/s, simulated: steps of {1e3 * STEP_S:.0f} ms, {AT_ONCE} answers of {ANSWER_TOKENS} tokens at once",
        ["image", "between", "beside", "ratio"],
        [[row[name] for name in ("image", "between_per_s", "beside_per_s", "ratio")] for row in rows],
    )
    simulated = {"step_s": STEP_S, "at_once": AT_ONCE, "answer_tokens": ANSWER_TOKENS, "requests": REQUESTS}
    finish("preparation", {"admitted_at_once": ADMIT_PER_STEP, "simulated": simulated, "rows": rows})


def demo_engine() -> Any:
    """The demo's engine with room for large images, and no cache of images, which here are all new."""
    os.environ["OMP_NUM_THREADS"] = "1"
    settings = demo_settings("cluster.cpus_per_actor=1")
    options = settings.engine.options | {"mm_processor_cache_gb": 0}
    return open_engine(replace(settings, engine=replace(settings.engine, max_model_len=4096, options=options)))


def measure(real: Any, size: str, folder: Path) -> dict[str, Any]:
    """One size of images."""
    width, height = map(int, size.split("x"))
    requests = draw_requests(folder, width, height, REQUESTS)
    prepare, submit = [], []
    for request in requests[:TIMED]:
        started = time.perf_counter()
        prepared = real.prepare(request)
        between = time.perf_counter()
        real.submit(request, prepared)
        prepare.append(between - started)
        submit.append(time.perf_counter() - between)
    real.abort_all()
    prepare_s, submit_s = statistics.median(prepare), statistics.median(submit)
    rates = {beside: rate(Simulated(real, beside), requests) for beside in (False, True)}
    return {
        "image": size,
        "prepare_ms": 1e3 * prepare_s,
        "submit_ms": 1e3 * submit_s,
        "stall_between_ms": 1e3 * ADMIT_PER_STEP * (prepare_s + submit_s),
        "stall_beside_ms": 1e3 * ADMIT_PER_STEP * submit_s,
        "between_per_s": rates[False],
        "beside_per_s": rates[True],
        "ratio": rates[True] / rates[False],
    }


def rate(engine: Simulated, requests: Sequence[RolloutRequest]) -> float:
    """Answers per second of a loop that is given all requests at once."""
    loop = EngineLoop(lambda: engine)
    loop.start()
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    started = time.perf_counter()
    loop.submit(requests, lambda _, answer: answers.put(answer))
    for _ in requests:
        answer = answers.get(timeout=TIMEOUT_S)
        assert isinstance(answer, Completion), answer
    seconds = time.perf_counter() - started
    loop.close()
    return len(requests) / seconds


if __name__ == "__main__":
    main()
