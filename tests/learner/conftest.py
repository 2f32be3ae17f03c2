"""Fixtures of the learner's tests: one tiny checkpoint and a handful of segments per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from learner.collate import Vision
from learner.prompt_encoder import PromptEncoder
from protocol.segments import Segment
from tests.learner import tiny


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def segments(tmp_path_factory: pytest.TempPathFactory) -> list[Segment]:
    folder = tmp_path_factory.mktemp("images")
    return [tiny.make_segment(folder, number, tail=8 + 3 * number) for number in range(4)]


@pytest.fixture(scope="session")
def vision(checkpoint: Path, segments: list[Segment]) -> list[Vision]:
    encoder = PromptEncoder(tiny.settings(checkpoint))
    found = [prompt.vision for prompt in encoder.encode_all(segments)]
    encoder.close()
    return found
