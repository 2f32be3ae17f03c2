"""Turns on one device: the state moves once each way, whatever is asked in between (SPEC A19)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from learner.residence import Residence


class Recorder:
    """In the place of a `TrainEngine` on a GPU."""

    def __init__(self) -> None:
        self.moves: list[str] = []

    def offload(self, parts: Sequence[str]) -> None:
        self.moves.append("offload " + "+".join(parts))

    def reload(self) -> None:
        self.moves.append("reload")


def test_training_steps_and_publishes_move_once_each_way() -> None:
    engine = Recorder()
    residence = Residence(engine, ("model", "optimizer"))
    for _ in range(2):
        for _ in range(3):  # M-steps
            residence.enter()
        residence.enter()
        residence.leave()
        residence.leave()  # the generator's end, after the manifest
    assert engine.moves == ["offload model+optimizer", "reload", "offload model+optimizer"]


def test_a_visit_ends_where_it_began_also_when_it_fails() -> None:
    engine = Recorder()
    residence = Residence(engine, ("optimizer",))
    with residence.visit():
        pass
    assert engine.moves == [], "it was on the device and stays there"
    residence.leave()
    with pytest.raises(OSError, match="disk"), residence.visit():
        raise OSError("disk full")
    assert engine.moves == ["offload optimizer", "reload", "offload optimizer"]


def test_without_parts_nothing_moves() -> None:
    engine = Recorder()
    residence = Residence(engine, ())
    residence.leave()
    residence.enter()
    assert engine.moves == []
