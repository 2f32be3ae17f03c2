"""The specification's own cases, and the harness that runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.protocol.golden.compare import differences
from tests.protocol.golden.runner import AREAS, COMMITTED_CASES, Case, failures, load_cases, report

CASES = load_cases(COMMITTED_CASES)
SHARED_CASES = Path(__file__).parents[2].parent / "shared" / "cases" / "golden.json"


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_golden_case(case: Case) -> None:
    assert failures(case) == []


def test_the_committed_cases_are_the_shared_ones() -> None:
    if not SHARED_CASES.exists():
        pytest.skip(f"{SHARED_CASES.name} is not shared beside this checkout; the committed copy is what runs")
    assert json.loads(SHARED_CASES.read_text(encoding="utf-8")) == CASES


def test_every_area_of_the_cases_has_an_adapter() -> None:
    assert {case["area"] for case in CASES} == set(AREAS)


def test_an_unknown_area_is_a_failure(capsys: pytest.CaptureFixture[str]) -> None:
    assert report([{"id": "x-01", "area": "x", "name": "n", "input": {}, "expected": 1}]) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "0 passed, 1 failed"


def test_a_wrong_answer_is_shown_with_its_path() -> None:
    (problem,) = failures(
        {"id": "x", "area": "parse", "input": {"rollout_text": "{", "tokenizer": "char"}, "expected": _parse_of("[")}
    )
    assert problem.startswith(".response_text: expected '[', got '{'")


def _parse_of(response_text: str) -> dict[str, object]:
    return {
        "response_text": response_text,
        "n_response_tokens": 1,
        "prefix_text": "{",
        "prefix_token_ids": [ord("{")],
        "valid_objects": [],
        "dropped_invalid": 0,
        "dropped_ambiguous": 0,
        "truncated": True,
        "max_object_index_in_prefix": None,
    }


def test_an_expected_error_that_does_not_come_is_a_failure() -> None:
    case = {"id": "x", "area": "coord_tokens", "name": "n", "input": {"token": "<|coord_1|>"}}
    assert failures({**case, "expected": 1}) == []
    assert len(failures({**case, "expected": {"error": "ValueError"}})) == 1


def test_floats_are_equal_within_single_precision_and_nothing_else_is() -> None:
    assert list(differences({"a": [1.0, "nan"]}, {"a": [1.000001, float("nan")]})) == []
    assert list(differences({"a": "wall clock"}, {"a": 3.5})) == []
    for expected, got in ((1.0, 1.0001), (0, 1e-6), (True, 1), ([1], [1, 2]), ({"a": 1}, {}), ({}, {"a": 1})):
        assert len(list(differences(expected, got))) == 1
