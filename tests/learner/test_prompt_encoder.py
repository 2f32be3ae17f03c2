"""The learner's own view of a prompt, and what it refuses."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from learner.prompt_encoder import PromptEncoder
from protocol.errors import ImageError, LearnerError, PromptMismatchError
from protocol.segments import Segment
from tests.learner import tiny


@pytest.fixture(scope="module")
def encoder(checkpoint: Path) -> Iterator[PromptEncoder]:
    encoder = PromptEncoder(tiny.settings(checkpoint), pause=lambda _: None)
    yield encoder
    encoder.close()


def test_prompts_come_back_in_order_with_their_pixels(encoder: PromptEncoder, segments: list[Segment]) -> None:
    prompts = encoder.encode_all([segments[1], segments[0], segments[1]])
    assert [prompt.vision.grid_thw.tolist() for prompt in prompts] == [[[1, 4, 6]], [[1, 4, 4]], [[1, 4, 6]]]
    assert [len(prompt.vision.pixel_values) for prompt in prompts] == [24, 16, 24]
    assert all(len(p.ids) == s.prompt_len for p, s in zip(prompts, [segments[1], segments[0]], strict=False))


def test_one_image_token_less_is_a_mismatch(encoder: PromptEncoder, segments: list[Segment]) -> None:
    shorter = replace(
        segments[0], input_ids=np.delete(segments[0].input_ids, 30), prompt_len=segments[0].prompt_len - 1
    )
    with pytest.raises(PromptMismatchError, match="differ first at position"):
        encoder.encode_all([shorter])


def test_a_prompt_longer_than_the_learners_is_a_mismatch(encoder: PromptEncoder, segments: list[Segment]) -> None:
    with pytest.raises(PromptMismatchError):
        encoder.encode_all([replace(segments[0], prompt_len=segments[0].prompt_len + 1)])


def test_another_system_prompt_is_a_mismatch(checkpoint: Path, segments: list[Segment]) -> None:
    other = PromptEncoder(tiny.settings(checkpoint, system_prompt="Answer in YAML."))
    with pytest.raises(PromptMismatchError, match="check model"):
        other.encode_all(segments[:1])
    other.close()


def test_a_missing_image_names_its_path(encoder: PromptEncoder, segments: list[Segment]) -> None:
    with pytest.raises(LearnerError, match=r"record=0/epoch=0/rollout=0: cannot read /nowhere\.png, 3 tries: .*mount"):
        encoder.encode_all([replace(segments[0], images=("/nowhere.png",))])


@pytest.mark.parametrize(("failures", "is_read"), [(2, True), (3, False)])
def test_an_image_that_the_machine_does_not_hand_over_is_tried_again_and_then_the_learners_failure(
    checkpoint: Path, segments: list[Segment], monkeypatch: pytest.MonkeyPatch, failures: int, is_read: bool
) -> None:
    """Not the data's, which would end the run: the engine has read that file."""
    left, real = [errno.ESTALE, errno.EMFILE, errno.EIO][:failures], Image.open

    def fail_first(path: str, **options: Any) -> Image.Image:
        if left:
            raise OSError(left.pop(), "not now", path)
        return real(path, **options)

    monkeypatch.setattr(Image, "open", fail_first)
    encoder = PromptEncoder(tiny.settings(checkpoint), pause=lambda _: None)
    if is_read:
        assert len(encoder.encode_all(segments[:1])) == 1
    else:
        with pytest.raises(LearnerError, match="not now"):
            encoder.encode_all(segments[:1])
    encoder.close()


def test_an_image_that_cannot_be_decoded_is_the_datas_failure(
    encoder: PromptEncoder, tmp_path: Path, segments: list[Segment]
) -> None:
    no_image, cut = tmp_path / "text.png", tmp_path / "cut.png"
    no_image.write_text("hello")
    cut.write_bytes(Path(segments[0].images[0]).read_bytes()[:2000])
    for path in (no_image, cut):
        with pytest.raises(ImageError, match=f"cannot read {path}"):
            encoder.encode_all([replace(segments[0], images=(str(path),))])


def test_an_image_that_the_processor_would_resize_is_refused(
    checkpoint: Path, tmp_path: Path, segments: list[Segment]
) -> None:
    start = tiny.write_checkpoint(tmp_path / "resizing")
    name = start / "preprocessor_config.json"
    name.write_text(name.read_text().replace('"do_resize": false', '"do_resize": true'))
    encoder = PromptEncoder(tiny.settings(start))
    odd = tiny.draw_image(tmp_path / "odd.png", 1, width=70, height=64)
    with pytest.raises(ImageError, match=r"70x64 pixels and the processor made 64x64"):
        encoder.encode_all([replace(segments[0], images=(odd,))])
    encoder.close()


def test_what_earlier_steps_needed_is_forgotten_beyond_the_limit(checkpoint: Path, segments: list[Segment]) -> None:
    for limit, remembered in ((0, False), (2**20, True)):
        encoder = PromptEncoder(tiny.settings(checkpoint, pixel_cache_bytes=limit))
        encoder.prefetch(segments[:2])
        first, again = encoder.encode_all(segments[:1]), encoder.encode_all(segments[:1])
        assert first[0] is again[0], "the step's own pixels are kept"
        encoder.prefetch(segments[2:])
        assert (encoder.encode_all(segments[:1])[0] is first[0]) is remembered
        encoder.close()


def test_reading_ahead_raises_only_where_the_pixels_are_wanted(encoder: PromptEncoder, segments: list[Segment]) -> None:
    broken = replace(segments[3], images=("/gone.png",))
    encoder.prefetch([*segments[:3], broken])
    assert len(encoder.encode_all(segments[:3])) == 3
    with pytest.raises(LearnerError, match=r"record=3/epoch=0/rollout=0: cannot read /gone\.png"):
        encoder.encode_all([broken])


def test_no_thread_outlives_the_encoder(checkpoint: Path, segments: list[Segment]) -> None:
    before = set(threading.enumerate())
    encoder = PromptEncoder(tiny.settings(checkpoint))
    encoder.prefetch(segments)
    assert set(threading.enumerate()) - before
    encoder.close()
    assert set(threading.enumerate()) <= before
