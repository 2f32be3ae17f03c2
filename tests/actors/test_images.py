"""Images that cannot be read are a matter of their record, however Pillow says so."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import MAX_TEXT_CHUNK, PngInfo

from actors.hf_engine import HfEngine
from actors.images import open_image
from actors.settings import ActorSettings
from actors.vllm_engine import VllmEngine
from protocol.config import load_config
from protocol.contracts import Record, RequestKey, RolloutRequest
from protocol.errors import ImageError
from protocol.patience import PAUSE_S, TRIES

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"


def request(path: str) -> RolloutRequest:
    record = Record(index=0, source="train.jsonl:1", images=(path,), width=8, height=8, objects=())
    return RolloutRequest(key=RequestKey(0, 0), record=record, seed=0)


def cut_off(folder: Path) -> str:
    path = folder / "cut.jpg"
    Image.new("RGB", (8, 8)).save(path)
    path.write_bytes(path.read_bytes()[:-40])
    return str(path)


def with_a_huge_comment(folder: Path) -> str:
    """A few kilobytes of text that decompress to more than Pillow allows."""
    path, info = folder / "comment.png", PngInfo()
    info.add(b"zTXt", b"comment\0\0" + zlib.compress(b"x" * (MAX_TEXT_CHUNK + 1)))
    Image.new("RGB", (8, 8)).save(path, pnginfo=info)
    return str(path)


def grey_of_16_bits(folder: Path) -> str:
    Image.new("I;16", (8, 8)).save(folder / "deep.png")
    return str(folder / "deep.png")


@pytest.mark.parametrize(
    "broken",
    [cut_off, with_a_huge_comment, lambda _: "a\0b.png", grey_of_16_bits],
    ids=["cut", "comment", "NUL", "16 bits"],
)
def test_a_file_that_cannot_be_read_is_an_error_of_its_record(broken: object, tmp_path: Path) -> None:
    assert callable(broken)
    with pytest.raises(ImageError, match=r"train.jsonl:1: cannot read image .*; restore it or drop the record"):
        open_image(request(broken(tmp_path)))


def test_another_size_than_the_records_is_named_with_both(tmp_path: Path) -> None:
    Image.new("RGB", (16, 8)).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match="is 16x8, the record says 8x8"):
        open_image(request(str(tmp_path / "x.png")))


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Has the next opens of images fail, and returns those that are still to come."""

    def script(*errors: OSError) -> Iterator[OSError]:
        left, whole = iter(errors), Image.open

        def opening(*arguments: Any, **options: Any) -> Image.Image:
            for error in left:
                raise error
            return whole(*arguments, **options)

        monkeypatch.setattr(Image, "open", opening)
        return left

    return script


def coded(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.EMFILE])
def test_what_the_system_says_of_a_file_may_pass(number: int, failing: Any, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    paused: list[float] = []
    failing(*[coded(number)] * (TRIES - 1))
    assert open_image(request(str(tmp_path / "x.png")), pause=paused.append).size == (8, 8)
    assert paused == [PAUSE_S] * (TRIES - 1)
    failing(*[coded(number)] * TRIES)
    with pytest.raises(ImageError, match=rf"train.jsonl:1: cannot read image .*{os.strerror(number)}"):
        open_image(request(str(tmp_path / "x.png")), pause=paused.append)
    assert paused == [PAUSE_S] * 2 * (TRIES - 1), "nobody waits after the last try"


@pytest.mark.parametrize("error", [coded(errno.ENOENT), OSError("image file is truncated")])
def test_a_file_that_is_gone_or_broken_is_not_tried_again(error: OSError, failing: Any, tmp_path: Path) -> None:
    failing(error)
    with pytest.raises(ImageError, match="cannot read image"):
        open_image(request(str(tmp_path / "x.png")), pause=lambda _: pytest.fail("it is not waited for"))


@pytest.mark.parametrize("engine", [VllmEngine, HfEngine])
def test_an_image_above_the_configured_size_is_refused_unread(
    engine: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    overrides = ["template.max_pixels=63", f"custom.train_jsonl={tmp_path}/t.jsonl"]
    settings = ActorSettings.from_config(load_config(DEMO, overrides=overrides)).engine
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))
    built = SimpleNamespace(_frame=SimpleNamespace(prompt_text=""), _max_pixels=settings.max_pixels)
    with pytest.raises(ImageError, match=r"^train.jsonl:1: image x.png is 8x8, 64 pixels, template.max_pixels is 63"):
        engine.prepare(built, request("x.png"))


def test_an_image_of_the_configured_size_is_opened(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    assert open_image(request(str(tmp_path / "x.png")), 64).size == (8, 8)
