"""First values of the coordinate tokens' rows. The files around them are `tests/deploy/test_add_coordinates.py`'s."""

from __future__ import annotations

import torch

from learner.coordinate_rows import coordinate_rows


def test_a_bin_lies_on_the_path_through_the_digits() -> None:
    digits = torch.arange(20.0).reshape(10, 2) ** 2
    mean = torch.tensor([5.0, 7.0])
    rows = coordinate_rows(digits, mean)
    assert rows.shape == (1001, 2)
    assert rows[0].tolist() == mean.tolist(), "the wildcard"
    shift = mean - digits.mean(0)
    for digit in (0, 3, 9):
        torch.testing.assert_close(rows[1 + 111 * digit], digits[digit] + shift)
    torch.testing.assert_close(rows[1 + 37], digits[0] * 2 / 3 + digits[1] / 3 + shift)
