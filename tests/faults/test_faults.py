"""Each kind of fault once, against the real pool, buffer and loop on real Ray; `benchmarks.faults` is the long form.

`FaultRun.verify` asserts what must hold: no record lost, none trained twice, windows in order, staleness within its
bound, every recovery within its deadline.
"""

from __future__ import annotations

import pytest

from tests.faults.harness import KINDS
from tests.faults.suite import in_own_process

pytestmark = pytest.mark.integration


def test_simulated_actors_survive_each_kind_of_fault() -> None:
    found = in_own_process("--engine", "simulated", "--faults", str(len(KINDS)), timeout_s=500)
    assert set(found["recoveries"]) == set(KINDS)
    assert found["trained"] > 0
    assert found["quarantined"] == []


@pytest.mark.long
def test_vllm_engines_survive_a_kill_and_a_load_that_stops_half_way() -> None:
    found = in_own_process("--engine", "vllm", "--kinds", "sigkill_generating", "raise_in_load", timeout_s=550)
    assert set(found["recoveries"]) == {"sigkill_generating", "raise_in_load"}
    assert found["quarantined"] == []
