"""The whole loop on real Ray, vLLM and DeepSpeed: what the demo shows, in small."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deploy.attest import attest
from deploy.evaluation import evaluate_checkpoint
from protocol.config import RunConfig
from tests.integration.conftest import TwoWindows, read_lines
from tests.integration.recorded import check_recorded

pytestmark = pytest.mark.integration


def test_two_windows_with_two_learner_ranks_train_on_what_the_engines_serve(
    two_windows: TwoWindows, demo_config: Callable[..., RunConfig]
) -> None:
    summary, folder = two_windows.summary, two_windows.config.run_dir

    assert summary["steps"] == 2
    assert summary["rollouts"] == 8
    assert summary["policy_versions"] == 2
    assert summary["versions_used"] == [0, 1], "each window was rolled out by the version before it"
    publishes = [event for event in read_lines(folder / "events.jsonl") if event["kind"] == "publish"]
    assert [event["version"] for event in publishes] == [0, 1, 2]
    for event in publishes:
        assert event["checksums"], "something was published"
        assert [engine["name"] for engine in event["engines"]] == ["actor-0"]
    steps = [line for line in read_lines(folder / "metrics.jsonl") if "loss/ce" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert all(line["sync/changed_tensors"] > 0 and line["policy/staleness_max"] == 0 for line in steps)
    check_recorded(two_windows.config)

    # The checksums attest the bytes that arrived. This attests what is served: engines that took two publishes and an
    # engine that never took one give the same rollouts, so the same metrics to the last digit.
    merged = folder / "checkpoint-2" / "merged"
    served = {name: value for name, value in summary["after"].items() if name.startswith("eval_rollout")}
    fresh = evaluate_checkpoint(demo_config(f"model.model={merged}"))
    assert served == {name: fresh[name] for name in served}
    assert served != {name: summary["before"][name] for name in served}, "or the comparison could not fail"

    # The same by vLLM's own digests and probabilities, for a full publish of the export.
    attestation = attest(demo_config(), merged.parent, num_records=2)
    assert attestation.attested
    assert attestation.export.max_logprob_difference == 0.0
    assert attestation.start.differing_weights, "the digests see that the publish moved weights"
    assert attestation.start.max_logprob_difference > 0.01, "and so do the probabilities"
