"""Two engines compared: every kind of difference counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from actors.attestation import Probe, Served, compare

SERVED = Served(
    checksums={"a": "1", "b": "2"},
    probes=(
        Probe("r0", np.array([5, 6, 7], np.int32), np.array([[-0.1, -3.0], [-0.2, -2.0], [-0.3, -1.5]], np.float32)),
        Probe("r1", np.array([5], np.int32), np.array([[-0.5, -1.0]], np.float32)),
    ),
)


def with_first_probe(token_ids: list[int], logprobs: list[list[float]]) -> Served:
    probe = Probe("r0", np.array(token_ids, np.int32), np.array(logprobs, np.float32))
    return replace(SERVED, probes=(probe, SERVED.probes[1]))


def test_an_engine_is_the_same_as_itself() -> None:
    found = compare(SERVED, SERVED)
    assert found.same
    assert (found.num_weights, found.num_answers, found.max_logprob_difference) == (2, 2, 0.0)


def test_a_weight_with_another_digest_or_on_one_side_only_is_a_difference() -> None:
    found = compare(SERVED, replace(SERVED, checksums={"a": "1", "b": "3", "c": "4"}))
    assert found.differing_weights == ("b", "c")
    assert not found.same


def test_another_answer_is_a_difference_and_probabilities_count_up_to_where_it_parts() -> None:
    other = with_first_probe([5, 9, 9, 9], [[-0.1, -3.0], [-0.25, -2.0], [-9.0, -9.0], [-9.0, -9.0]])
    found = compare(SERVED, other)
    assert found.differing_answers == ("r0",)
    assert abs(found.max_logprob_difference - 0.05) < 1e-6, "the prompts after it differ"


def test_equal_answers_with_other_probabilities_are_a_difference() -> None:
    found = compare(SERVED, with_first_probe([5, 6, 7], [[-0.1, -3.0], [-0.2, -2.0], [-0.3, -1.6]]))
    assert found.differing_answers == ()
    assert not found.same


def test_probabilities_that_are_no_numbers_are_a_difference_and_equal_infinities_none() -> None:
    def with_middle(value: float) -> Served:
        return with_first_probe([5, 6, 7], [[-0.1, -3.0], [-0.2, value], [-0.3, -1.5]])

    assert not compare(SERVED, with_middle(float("nan"))).same
    assert not compare(SERVED, with_middle(float("-inf"))).same
    assert compare(with_middle(float("-inf")), with_middle(float("-inf"))).same
