"""Every combination of tuner, ZeRO stage, ranks and row layout, against one rank without sharding.

`python -m tests.integration.learner_matrix` prints a line per combination and exits with 1 if one differs.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from protocol.segments import PackPlan, Segment
from tests.integration.learner_cases import (
    CARRIED_WHOLE,
    DORA,
    LORA,
    ONE_PACK,
    SHARDED,
    SHARDED_OTHERWISE,
    TWO_PACKS,
    Outcome,
    Ranks,
    carried_windows,
    case_settings,
    four_segments,
    small_cluster,
)
from tests.learner import tiny

TOLERANCE = 1e-5
TUNERS = {"full": tiny.FULL, "lora": LORA, "dora": DORA}
LAYOUTS = ("packed", "padded", "carry")
WINDOWS = {1: [TWO_PACKS, ONE_PACK], 2: [SHARDED, SHARDED_OTHERWISE]}


def differences(found: list[Outcome], reference: list[Outcome]) -> tuple[float, float]:
    """Largest relative difference of a step's loss, and of a published tensor against its largest element."""
    totals = [[sum(o.losses[step] for o in side) for step in range(2)] for side in (found, reference)]
    loss = max(abs(a - b) / abs(b) for a, b in zip(*totals, strict=True))
    weights = max(
        float(np.abs(found[0].weights[name] - array).max() / max(1e-2, float(np.abs(array).max())))
        for name, array in reference[0].weights.items()
    )
    return loss, weights


def plans(layout: str, segments: Sequence[Segment], num_ranks: int) -> list[PackPlan]:
    return carried_windows(segments, num_ranks) if layout == "carry" else WINDOWS[num_ranks]


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="rollmatch-matrix-"))
    start = tiny.write_checkpoint(folder / "model")
    segments = four_segments(folder)
    references: dict[tuple[str, bool], list[Outcome]] = {}
    outcomes: list[bool] = []
    with small_cluster(folder / "ray"):
        for num_ranks in (1, 2):
            ranks = Ranks(num_ranks, tiny.settings(start))
            for tuner in TUNERS if num_ranks == 1 else ():
                for carried, whole in ((False, [ONE_PACK, ONE_PACK]), (True, CARRIED_WHOLE)):
                    references[tuner, carried] = ranks.case(case_settings(start, 0, TUNERS[tuner]), whole, segments)
            for tuner, stage, layout in itertools.product(TUNERS, range(4), LAYOUTS):
                settings = case_settings(start, stage, TUNERS[tuner], packing=layout != "padded")
                found = ranks.case(settings, plans(layout, segments, num_ranks), segments)
                loss, weights = differences(found, references[tuner, layout == "carry"])
                outcomes.append(loss <= TOLERANCE and weights <= TOLERANCE)
                print(
                    f"{tuner} zero{stage} ranks={num_ranks} {layout}: loss {loss:.1e} weights {weights:.1e}", flush=True
                )
            ranks.close()
    print(f"{outcomes.count(False)} of {len(outcomes)} combinations differ by more than {TOLERANCE}")
    return 0 if all(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
