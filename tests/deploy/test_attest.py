"""The verdict of `evaluate --attest`; its engines are in tests/integration/test_loop.py."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from actors.attestation import Comparison
from deploy.attest import Attestation, print_attestation


def comparison(difference: float, *weights: str) -> Comparison:
    return Comparison(
        num_weights=3,
        differing_weights=weights,
        num_answers=2,
        differing_answers=(),
        max_logprob_difference=difference,
    )


@pytest.mark.parametrize(
    ("export", "start", "words"),
    [
        (comparison(0.0), comparison(0.5, "a"), "the same"),
        (comparison(0.0), comparison(0.0, "a"), "the same"),
        (comparison(0.5), comparison(0.5, "a"), "DIFFERENT"),
        (comparison(0.0005), comparison(0.0005), "inconclusive: the probes cannot tell the export from the start"),
    ],
)
def test_an_engine_that_ignored_the_publish_would_not_pass(export: Comparison, start: Comparison, words: str) -> None:
    found = Attestation(export, start)
    assert found.attested is (words == "the same")
    assert found.as_json()["attested"] is found.attested
    console = Console(width=120, file=io.StringIO())
    print_attestation(found, console=console)
    assert f"against the export: {words}" in console.file.getvalue()  # type: ignore[attr-defined]
