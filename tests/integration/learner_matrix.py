"""Every combination of tuner, ZeRO stage, ranks and row layout, against one rank without sharding.

`python -m tests.integration.learner_matrix` prints a line per combination and exits with 1 if one differs.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import ray

from learner.settings import OptimizerSettings, TunerSettings
from protocol.contracts import PackPlan
from tests.integration.learner_cases import Outcome, Ranks
from tests.learner import tiny

TOLERANCE = 1e-5
LORA = TunerSettings(kind="lora", freeze_aligner=False)
TUNERS = {"full": tiny.FULL, "lora": LORA, "dora": replace(LORA, use_dora=True)}
PLANS = {
    1: [PackPlan(micro_batches=(((0, 1),), ((2, 3),))), PackPlan(micro_batches=(((0, 1, 2, 3),),))],
    2: [PackPlan(micro_batches=(((0, 1), (2,)), ((3,), ()))), PackPlan(micro_batches=(((3,), (0, 1, 2)),))],
}


def differences(found: list[Outcome], reference: list[Outcome]) -> tuple[float, float]:
    """Largest relative difference of a step's loss, and of a published tensor against its largest element."""
    totals = [[sum(o.losses[step] for o in side) for step in range(2)] for side in (found, reference)]
    loss = max(abs(a - b) / abs(b) for a, b in zip(*totals, strict=True))
    weights = max(
        float(np.abs(found[0].weights[name] - array).max() / max(1e-2, float(np.abs(array).max())))
        for name, array in reference[0].weights.items()
    )
    return loss, weights


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="rollmatch-matrix-"))
    start = tiny.write_checkpoint(folder / "model")
    segments = [tiny.make_segment(folder, number, tail=8 + 3 * number) for number in range(4)]
    optimizer = OptimizerSettings(learning_rate=1e-3, weight_decay=0.01, max_grad_norm=1.0, epsilon=1e-4)
    ray.init(address="local", num_cpus=2, include_dashboard=False, _temp_dir=str(folder / "ray"))
    references: dict[str, list[Outcome]] = {}
    failed = 0
    for num_ranks in (1, 2):
        ranks = Ranks(num_ranks, tiny.settings(start))
        for tuner, stage, packing in itertools.product(TUNERS, range(4), (True, False)):
            settings = tiny.settings(
                start,
                tuner=TUNERS[tuner],
                packing=packing,
                optimizer=optimizer,
                deepspeed={"zero_optimization": {"stage": stage}},
            )
            found = ranks.case(settings, PLANS[num_ranks], segments)
            loss, weights = differences(found, references.setdefault(tuner, found))
            failed += loss > TOLERANCE or weights > TOLERANCE
            layout = "packed" if packing else "padded"
            print(f"{tuner} zero{stage} ranks={num_ranks} {layout}: loss {loss:.1e} weights {weights:.1e}", flush=True)
        ranks.close()
    ray.shutdown()
    print(f"{failed} of 48 combinations differ by more than {TOLERANCE}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
