"""Parts of a JSON file are what `json.loads` gives, wherever the window ends, and what it refuses is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.coco import json_stream
from protocol.coco.json_stream import JsonStream, open_json

NUMBERS = st.integers() | st.floats(allow_nan=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


def read(text: str, window: int) -> Any:
    """The text with its outermost object and the lists in it read part by part."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "WINDOW", window)
        stream = JsonStream(io.StringIO(text))
        found: Any = {}
        if stream.peek() == "{":
            for key in stream.members():
                found[key] = list(stream.elements()) if stream.peek() == "[" else stream.value()
        elif stream.peek() == "[":
            found = list(stream.elements())
        else:
            found = stream.value()
        stream.end()
        return found


@given(VALUES, st.integers(1, 12), st.sampled_from([None, 1]), st.booleans())
def test_parts_are_what_json_reads_wherever_the_window_ends(
    value: Any, window: int, indent: int | None, escaped: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=escaped)
    assert read(text, window) == json.loads(text)


@given(VALUES, st.integers(1, 12), st.data())
def test_what_json_refuses_is_refused(value: Any, window: int, data: st.DataObject) -> None:
    """A text with one character taken out or put in."""
    text = json.dumps(value)
    at = data.draw(st.integers(0, len(text)))
    changed = text[:at] + data.draw(st.sampled_from([*'{}[],:"1e.- ', ""])) + text[at + data.draw(st.booleans()) :]
    try:
        expected = json.loads(changed)
    except ValueError:
        with pytest.raises(ValueError, match="at character"):
            read(changed, window)
    else:
        assert read(changed, window) == expected


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", 0),
        ('{"a": [1, 2 3]}', 12),
        ('{"a": [1, nul]}', 10),
        ('{"a": 1, }', 9),
        ('{"a": 1} 2', 9),
        ("{1: 2}", 2),
        ("[1", 2),
    ],
)
@pytest.mark.parametrize("window", [3, 100])
def test_a_text_that_is_malformed_is_an_error_at_its_place_in_the_file(text: str, place: int, window: int) -> None:
    with pytest.raises(ValueError, match=rf"at character {place}$"):
        read(text, window)


@pytest.mark.parametrize("text", ["{'a': 1}", '{"a": nul}', '{"a": "\\ud8zz"}', "[1, 2 3]", '{"a": "\n"}'])
def test_what_no_more_text_can_mend_is_an_error_before_any_is_read(text: str) -> None:
    file = io.StringIO(f"{text}{' ' * 3 * json_stream.WINDOW}")
    with pytest.raises(ValueError, match="at character"):
        JsonStream(file).value()
    assert file.tell() == json_stream.WINDOW


def test_a_place_in_a_file_counts_every_character_of_a_line_break(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'{\r\n\r\n"a": [}')
    with open_json(tmp_path / "x.json") as file, pytest.raises(ValueError, match=r"at character 11$"):
        JsonStream(file).value()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_file_is_decoded_as_json_decodes_it(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.json").write_text('{"name": "crêpe"}', encoding=encoding)
    with open_json(tmp_path / "x.json") as file:
        assert JsonStream(file).value() == json.loads((tmp_path / "x.json").read_bytes())


def test_half_a_pair_is_read_as_json_reads_it(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b'"caf\xed\xb3\xa9.jpg"')
    with open_json(tmp_path / "x.json") as file:
        assert JsonStream(file).value() == json.loads((tmp_path / "x.json").read_bytes())
