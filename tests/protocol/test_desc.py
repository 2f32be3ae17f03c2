"""Descriptions compared as words."""

from __future__ import annotations

import pytest

from protocol.desc import DescCounts, count_exact, normalise_desc


@pytest.mark.parametrize(
    ("desc", "expected"),
    [
        (None, ""),
        ("  ", ""),
        ("Tool (cabinet)", "tool cabinet"),
        ("traffic_light/pole", "traffic light pole"),
        (" A \t b ", "a b"),
        ("()", ""),
    ],
)
def test_normalisation_keeps_words_only(desc: str | None, expected: str) -> None:
    assert normalise_desc(desc) == expected


def test_a_pair_counts_when_both_sides_say_something() -> None:
    counts = count_exact([("Cat", "cat"), ("truck", "car"), ("()", "cat"), ("dog", " ")])
    assert counts == DescCounts(total=2, exact=1)
