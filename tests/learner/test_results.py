"""What the ranks say, added up."""

from __future__ import annotations

import math

import pytest

from learner.losses import LossSums
from learner.results import RankStep, Seconds, SkipLimit, combine
from protocol.contracts import RequestKey
from protocol.errors import NonFiniteError


def rank(
    sums: LossSums,
    loss: float,
    seconds: Seconds,
    keys: tuple[RequestKey, ...] = (),
    skipped_keys: tuple[RequestKey, ...] = (),
) -> RankStep:
    return RankStep(
        sums=sums,
        loss=loss,
        num_tokens=100,
        seconds=seconds,
        grad_norm=2.5,
        learning_rate=1e-4,
        skipped=bool(keys or skipped_keys),
        non_finite_keys=keys,
        skipped_keys=skipped_keys,
    )


def test_sums_add_up_and_times_are_the_slowest_ranks() -> None:
    result = combine(
        [
            rank(LossSums(6.0, 3, 4.0, 2, 4.0, 2, 0.0, 0), 1.5, Seconds(forward=1.0, backward=4.0)),
            rank(LossSums(2.0, 1, 0.0, 0), 0.5, Seconds(forward=2.0, backward=1.0)),
        ]
    )
    assert (result.loss, result.num_tokens, result.skipped) == (2.0, 200, False)
    assert (result.slowest.forward, result.slowest.backward, result.busy_s) == (2.0, 4.0, (5.0, 3.0))
    metrics = result.metrics()
    assert metrics["loss/ce"] == 2.0
    assert metrics["loss/coord"] == metrics["loss/coord_prefix"] == 2.0
    assert metrics["train/ce_tokens"] == 4.0


def test_the_phases_of_micro_batches_add_up_each_for_itself() -> None:
    first, second = Seconds(1.0, 2.0, 3.0, 4.0, 5.0), Seconds(fetch=10.0, optimizer=20.0)
    assert first + second == Seconds(11.0, 2.0, 3.0, 4.0, 25.0)
    assert (first + Seconds()).busy == first.busy == 15.0


def test_a_mean_without_observations_is_absent() -> None:
    metrics = combine([rank(LossSums(2.0, 1), 2.0, Seconds())]).metrics()
    assert metrics["loss/ce"] == 2.0
    assert not {"loss/coord", "loss/coord_prefix", "loss/coord_tail"} & metrics.keys()


def test_a_skipped_step_names_the_segments_of_every_rank() -> None:
    keys = (RequestKey(3), RequestKey(4))
    result = combine([rank(LossSums(), 0.0, Seconds(), keys[:1]), rank(LossSums(), 0.0, Seconds(), keys[1:])])
    assert result.skipped
    assert result.non_finite_keys == keys
    assert result.metrics()["train/skipped_steps"] == pytest.approx(1.0)


def test_where_only_the_gradient_was_not_finite_all_segments_are_named() -> None:
    keys = (RequestKey(3), RequestKey(4))
    ranks = [rank(LossSums(), 0.0, Seconds(), skipped_keys=(key,)) for key in keys]
    assert combine(ranks).non_finite_keys == keys
    ranks.append(rank(LossSums(), 0.0, Seconds(), keys[:1], skipped_keys=keys))
    assert combine(ranks).non_finite_keys == keys[:1]


def test_one_skip_more_than_allowed_in_a_row_ends_the_run_and_names_the_last_segments() -> None:
    limit = SkipLimit(2)
    good = combine([rank(LossSums(), 1.0, Seconds())])
    skips = [combine([rank(LossSums(), math.nan, Seconds(), (RequestKey(number),))]) for number in range(3)]
    for result in (*skips[:2], good, *skips[:2]):
        limit.note(result)
    with pytest.raises(NonFiniteError, match=r"max_skipped_steps: 3 optimizer steps.*trained record=2") as caught:
        limit.note(skips[2])
    assert "record=1" not in str(caught.value)
    with pytest.raises(NonFiniteError, match="1 optimizer steps in a row were skipped, 0 are allowed"):
        SkipLimit(0).note(skips[0])
