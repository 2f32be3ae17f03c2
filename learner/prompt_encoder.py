"""A segment's prompt, encoded once more with the checkpoint's own processor: the cross-check and the pixels.

The engine already turned prompt and image into ids; the learner needs the pixels anyway, and does not believe that
both sides hold the same processor, template and image until the ids are equal (SPEC 10).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image
from transformers import AutoProcessor

from learner.collate import Vision, check_prompt
from learner.settings import LearnerSettings
from protocol.contracts import IntArray
from protocol.errors import ImageError, LearnerError
from protocol.patience import TRIES, patiently
from protocol.record_lines import IMAGE_FORMATS, MAX_IMAGE_PIXELS
from protocol.segments import Segment


@dataclass(frozen=True, slots=True)
class Prompt:
    """What one prompt and image become."""

    ids: IntArray
    """[P] with image tokens expanded."""
    vision: Vision

    @property
    def num_bytes(self) -> int:
        return int(self.ids.nbytes + self.vision.pixel_values.nbytes)


class PromptEncoder:
    """Reads images in threads, ahead of who needs them, and remembers them: a window is trained `m_steps` times."""

    def __init__(self, settings: LearnerSettings, pause: Callable[[float], None] = time.sleep) -> None:
        """`pause` waits between two tries to read an image."""
        self._processor = AutoProcessor.from_pretrained(settings.model)
        self._text = self._template(settings.system_prompt, settings.user_prompt)
        self._threads = ThreadPoolExecutor(max(1, settings.image_threads), thread_name_prefix="pixels")
        self._prompts: dict[tuple[str, ...], Future[Prompt]] = {}
        """By images, oldest first."""
        self._limit = settings.pixel_cache_bytes
        self._pause = pause

    def prefetch(self, segments: Sequence[Segment]) -> None:
        """Begins to read what the segments of a step need, in their order; waits for nothing and raises nothing.

        What earlier steps needed is forgotten where it exceeds the limit; the step's own pixels are all kept.
        """
        self._begin(segments)
        wanted = {segment.images for segment in segments}
        held = sum(_num_bytes(future) for future in self._prompts.values())
        for images in [images for images in self._prompts if images not in wanted]:
            if held > self._limit:
                held -= _num_bytes(self._prompts.pop(images))

    def encode_all(self, segments: Sequence[Segment]) -> list[Prompt]:
        """Prompts in the order of `segments`, each checked against its segment's ids.

        Raises:
            PromptMismatchError: the ids differ.
            ImageError: an image cannot be decoded, or was resized on its way.
            LearnerError: this machine could not read an image, `TRIES` times.
        """
        self._begin(segments)
        prompts = [self._prompts[segment.images].result() for segment in segments]
        for segment, prompt in zip(segments, prompts, strict=True):
            check_prompt(segment.key, segment.input_ids, prompt.ids, segment.prompt_len)
        return prompts

    def close(self) -> None:
        self._threads.shutdown(cancel_futures=True)

    def _begin(self, segments: Sequence[Segment]) -> None:
        for segment in segments:
            if segment.images not in self._prompts:
                self._prompts[segment.images] = self._threads.submit(self._encode, segment)

    def _template(self, system_prompt: str, user_prompt: str) -> str:
        """Image before text in the user turn, as everywhere (SPEC A15)."""
        messages = [
            {"role": "system", "content": system_prompt},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": user_prompt}]},
        ]
        text: str = self._processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text

    def _encode(self, segment: Segment) -> Prompt:
        images = [_open(path, segment, self._pause) for path in segment.images]
        encoded = self._processor(text=[self._text], images=images, return_tensors="pt")
        vision = Vision(encoded["pixel_values"], encoded["image_grid_thw"])
        patch = self._processor.image_processor.patch_size
        for path, image, grid in zip(segment.images, images, vision.grid_thw.tolist(), strict=True):
            if (grid[2] * patch, grid[1] * patch) != image.size:
                raise ImageError(
                    f"{segment.key}: {path} has {image.width}x{image.height} pixels and the processor made "
                    f"{grid[2] * patch}x{grid[1] * patch} of them; coordinates refer to the image as it is: resize the "
                    "data set offline to multiples of 32 and set do_resize: false in preprocessor_config.json"
                )
        return Prompt(encoded["input_ids"][0].numpy().astype(np.int32), vision)


def _num_bytes(future: Future[Prompt]) -> int:
    """Of what has been read."""
    return future.result().num_bytes if future.done() and future.exception() is None else 0


def _open(path: str, segment: Segment, pause: Callable[[float], None]) -> Image.Image:
    """ImageError where the file is no image, LearnerError where the operating system does not hand it over."""
    try:  # the engine has read this very file, so it may be back in a moment
        return patiently(lambda: _decode(path, segment), pause, missing_may_pass=True)
    except OSError as error:
        raise LearnerError(
            f"{segment.key}: cannot read {path}, {TRIES} tries: {error}; the engine could, so this machine or its "
            "mount failed: check that all nodes see the same files"
        ) from error


def _decode(path: str, segment: Segment) -> Image.Image:
    """The image as RGB. OSError with an `errno` as the operating system raised it; all else is an ImageError."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise OSError(f"{image.width}x{image.height} pixels, the most is {MAX_IMAGE_PIXELS}")
            return image.convert("RGB")
    except Exception as error:  # a broken file makes Pillow raise almost anything
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ImageError(
            f"{segment.key}: cannot read {path}: {error}; the engine could: check that all nodes see the same files"
        ) from error
