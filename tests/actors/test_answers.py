"""Groups of answers: each answer once, whatever the order; who waits for whom."""

from __future__ import annotations

import queue
import threading
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from actors import answers
from actors.answers import GROUP_SIZE, Answered, Answers
from protocol.contracts import EVALUATION_EPOCH, GroundTruth, Record, RequestKey, RolloutRequest, Shape
from protocol.errors import EngineError, ImageError

CAT = GroundTruth(index=1, desc="cat", shape=Shape("bbox_2d", (100, 100, 300, 300)))
REFUSED = ImageError("cannot read image")


def request(record: int, epoch: int = 0) -> RolloutRequest:
    data = Record(index=record, source=f"t:{record + 1}", images=("x.png",), width=8, height=8, objects=(CAT,))
    return RolloutRequest(key=RequestKey(record, epoch), record=data, seed=0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is held waits as long as it takes; one that is not waits for no other."""
    monkeypatch.setattr(answers, "GROUP_S", 0.0)
    monkeypatch.setattr(answers, "HOLD_S", 600.0)


def expecting(*records: int) -> Answers:
    made = Answers()
    made.expect([request(record) for record in records])
    return made


def group(made: Answers, hold: bool = False) -> list[int]:
    return [answered.request.key.record for answered, _ in made.take_group(hold)]


@given(st.permutations(range(2 * GROUP_SIZE)), st.booleans())
@settings(max_examples=50)
def test_every_answer_is_in_one_group_in_the_order_of_completion(order: list[int], hold: bool) -> None:
    made = expecting(*range(len(order)))
    for record in order:
        made.put(request(record), REFUSED)

    assert group(made, hold) + group(made, hold) == order


def test_a_group_is_never_larger_than_its_limit_and_the_rest_comes_in_the_next() -> None:
    made = expecting(*range(GROUP_SIZE + 3))
    for record in range(GROUP_SIZE + 3):
        made.put(request(record), REFUSED)

    assert [len(group(made)), len(group(made))] == [GROUP_SIZE, 3]


class Arriving:
    """A queue whose answers come one each `apart` seconds; time passes only where one waits for them."""

    def __init__(self, made: Answers, apart: float, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self._apart, self._left = 0.0, apart, [*made._open]
        monkeypatch.setattr(answers, "time", SimpleNamespace(monotonic=lambda: self.now))
        made._queue = self  # type: ignore[assignment]

    def get(self, timeout: float | None) -> Answered:
        waits = self._apart if timeout is None else min(timeout, self._apart)
        self.now += waits
        if waits < self._apart:
            raise queue.Empty
        return Answered(request(self._left.pop(0).record), REFUSED, self.now)


@pytest.mark.parametrize(("hold", "longest"), [(False, answers.GROUP_S), (True, answers.HOLD_S)])
def test_the_first_answer_of_a_group_waits_no_longer_where_others_keep_coming(
    monkeypatch: pytest.MonkeyPatch, hold: bool, longest: float
) -> None:
    made = expecting(*range(9))
    arriving = Arriving(made, 0.4 * longest, monkeypatch)
    assert group(made, hold) == [0, 1, 2]
    assert arriving.now == pytest.approx(1.4 * longest), "the first came after 0.4 of them"


@pytest.mark.usefixtures("patient")
@given(st.permutations(range(6)))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_group_ends_with_the_answer_that_completes_a_batch(order: list[int]) -> None:
    made = expecting(0, 1, 2)
    made.expect([request(record) for record in (3, 4, 5)])
    for record in order:
        made.put(request(record), REFUSED)
    ends = [1 + max(order.index(record) for record in batch) for batch in ((0, 1, 2), (3, 4, 5))]

    groups = [group(made, hold=True), group(made, hold=True)]

    assert [len(groups[0]), len(groups[0] + groups[1])] == sorted(ends)
    assert groups[0] + groups[1] == order


@pytest.mark.usefixtures("patient")
def test_an_answer_waits_in_the_actor_for_those_of_its_batch_that_still_run() -> None:
    made = expecting(0, 1)
    made.expect([request(2)])
    found: list[int] = []
    made.put(request(1), REFUSED)
    taking = threading.Thread(target=lambda: found.extend(group(made, hold=True)))
    taking.start()
    made.put(request(0), REFUSED)
    taking.join(timeout=60)

    assert found == [1, 0], "request 2 is of another batch: nobody waits for it"


@pytest.mark.usefixtures("patient")
def test_an_evaluation_does_not_wait_for_rollouts_that_were_asked_for_before_it() -> None:
    made, evaluation = expecting(0, 1), request(2, epoch=EVALUATION_EPOCH)
    made.expect([evaluation])
    made.put(evaluation, REFUSED)

    assert group(made, hold=True) == [2]


def test_an_answer_is_held_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "HOLD_S", 0.0)
    made = expecting(0, 1)
    made.put(request(1), REFUSED)

    assert group(made, hold=True) == [1]


@pytest.mark.usefixtures("patient")
def test_nobody_waits_for_a_batch_where_the_driver_has_more_to_do() -> None:
    made = expecting(0, 1)
    made.put(request(1), REFUSED)

    assert group(made, hold=False) == [1]


def test_a_group_ends_with_the_last_open_request_however_long_it_might_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "GROUP_S", 600.0)
    made = expecting(0, 1)
    made.put(request(0), REFUSED)
    made.put(request(1), REFUSED)

    assert group(made) == [0, 1]


def test_what_ended_before_an_engine_failed_is_a_group_and_then_the_failure_is_raised() -> None:
    made = expecting(0, 1)
    made.put(request(0), REFUSED)
    made.put(request(1), EngineError("the device is lost"))

    assert group(made) == [0]
    with pytest.raises(EngineError, match="the device is lost"):
        group(made)


@pytest.mark.usefixtures("patient")
def test_each_answer_is_told_with_the_seconds_from_its_own_expect_to_its_put(monkeypatch: pytest.MonkeyPatch) -> None:
    """`latency_s` of a recorded rollout, and of the report."""
    now = 0.0
    monkeypatch.setattr(answers, "time", SimpleNamespace(monotonic=lambda: now))
    made = expecting(0)
    now = 1.0
    made.expect([request(1)])
    now = 3.0
    for record in (1, 0):
        made.put(request(record), REFUSED)
    now = 7.0  # how long it lies there is no part of it

    taken = [*made.take_group(hold=True), *made.take_group(hold=True)]
    assert {answered.request.key.record: seconds for answered, seconds in taken} == {0: 3.0, 1: 2.0}
