"""The reference's repeater and reuse buffer (SPEC 14)."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.protocol.golden.windows import ReuseBuffer, WindowError, fingerprint, repeat, repeated_length


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="group and m_steps must be > 0, got 0 and 1"):
        repeated_length(1, group=0, m_steps=1)


@pytest.mark.parametrize(
    ("items", "group", "m_steps", "repeated"),
    [("ABCD", 3, 2, "ABCABCD"), ("ABC", 1, 2, "AABBCC"), ("A", 4, 3, "A"), ("", 2, 2, "")],
)
def test_full_groups_repeat_and_a_partial_one_comes_once(items: str, group: int, m_steps: int, repeated: str) -> None:
    assert "".join(repeat(items, group=group, m_steps=m_steps)) == repeated


@settings(max_examples=500, deadline=None)
@given(count=st.integers(0, 30), group=st.integers(1, 5), m_steps=st.integers(1, 4))
def test_the_length_of_a_repetition_is_known_before(count: int, group: int, m_steps: int) -> None:
    found = list(repeat(range(count), group=group, m_steps=m_steps))
    assert len(found) == repeated_length(count, group=group, m_steps=m_steps)
    assert set(found) == set(range(count))


def test_a_fingerprint_is_the_sha1_of_compact_json() -> None:
    assert fingerprint([(3, 77), (None, None)]) == "1ddc3cc5dbe3014adb89c22b18ea59a97b1d11cb"


def turns(buffer: ReuseBuffer[int], schedule: list[tuple[int, int]]) -> list[tuple[int, int, bool, int, int]]:
    """(step, batch, reused, window_step0, completed) per micro-step; batches are numbered by the micro-step."""
    found, number = [], 0
    for step, num_micro_steps in schedule:
        for _ in range(num_micro_steps):
            number += 1
            turn = buffer.turn(step, lambda number=number: number)  # type: ignore[misc]
            found.append((step, turn.batch, turn.reused, turn.window_step0, turn.completed))
    return found


def test_windows_are_built_once_and_reused_m_steps_minus_one_times() -> None:
    found = turns(ReuseBuffer(group=2, m_steps=3), [(step, 2) for step in range(6)])
    assert [batch for _, batch, *_ in found] == [1, 2, 1, 2, 1, 2, 7, 8, 7, 8, 7, 8]
    assert [window for *_, window, _ in found] == [0] * 6 + [3] * 6


def test_a_partial_first_window_is_not_reused() -> None:
    found = turns(ReuseBuffer(group=2, m_steps=3), [(0, 1), (1, 2), (2, 2)])
    assert found[1:] == [(1, 2, False, 1, 0), (1, 3, False, 1, 0), (2, 2, True, 1, 1), (2, 3, True, 1, 1)]


@pytest.mark.parametrize("step", [5, 0])
def test_a_jump_of_the_step_begins_a_new_window(step: int) -> None:
    found = turns(ReuseBuffer(group=1, m_steps=4), [(1, 1), (2, 1), (step, 1)])
    assert found[-1] == (step, 3, False, step, 0)


def test_other_samples_in_an_m_step_are_refused() -> None:
    buffer: ReuseBuffer[int] = ReuseBuffer(group=1, m_steps=2)
    buffer.turn(0, lambda: 1, key="a")
    with pytest.raises(WindowError, match="fingerprint b, the window holds a"):
        buffer.turn(1, lambda: 2, key="b")


def test_an_unknown_fingerprint_is_not_compared() -> None:
    buffer: ReuseBuffer[int] = ReuseBuffer(group=1, m_steps=2)
    buffer.turn(0, lambda: 1, key=None)
    assert buffer.turn(1, lambda: 2, key="b").batch == 1


def test_more_micro_steps_than_the_window_holds_are_refused() -> None:
    buffer: ReuseBuffer[int] = ReuseBuffer(group=1, m_steps=2)
    buffer.turn(0, lambda: 1)
    buffer.turn(1, lambda: 2)
    with pytest.raises(RuntimeError, match="micro-step 1 of step 1"):
        buffer.turn(1, lambda: 3)
