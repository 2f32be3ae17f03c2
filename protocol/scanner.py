"""Finds the objects of a rollout's text in one pass, without understanding their values (SPEC 5.2).

The scan is the specification's character machine, driven by regular expressions: a whole string literal is one event,
and an object in the canonical form is one match. It returns character positions only; `parsing` maps them to tokens
and judges the values.

Where it reads the specification strictly:

- it ends where the first top-level object is closed, and every bracket (A3): `[{...}]` is whole, not truncated;
- a key opens an object only if nothing but `:` and blanks stands between it and the `{`: a scalar or a list under an
  object key clears the key (A3), so that a cut behind a closed object is always a cut at brace depth 1.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import NamedTuple

from protocol.contracts import GeometryType

_BLANK = r"[ \t\r\n]*+"
_COORD = r'"<\|coord_[0-9]{1,3}\|>"'
_COMMA = rf"{_BLANK},{_BLANK}"
_COLON = rf"{_BLANK}:{_BLANK}"
_PAIR = rf"\[{_BLANK}{_COORD}{_COMMA}{_COORD}{_BLANK}\]"
_BOX = rf"\[{_BLANK}{_COORD}(?:{_COMMA}{_COORD}){{3}}{_BLANK}\]"
_POLY = rf"\[{_BLANK}{_PAIR}(?:{_COMMA}{_PAIR})*+{_BLANK}\]"

_CANONICAL = re.compile(
    rf'{_BLANK}"(object_([0-9]{{1,9}}))"{_COLON}'
    rf'(\{{{_BLANK}"desc"{_COLON}"([^"\\\x00-\x1f]*+)"{_COMMA}'
    rf'(?:"bbox_2d"{_COLON}({_BOX})|"poly"{_COLON}({_POLY})){_BLANK}\}})'
)
"""key, digits, value, desc, box array, polygon array. Every match is valid JSON of the wanted form."""

_EVENT = re.compile(r'"([^"\\]*+(?:\\.[^"\\]*+)*+)("?)|[{}\[\],:]', re.DOTALL)
"""A string literal (body, closing quote or nothing) or a structural character."""

_OBJECT_KEY = re.compile(r"object_([0-9]{1,4000})")
"""4,000 digits: Python refuses to convert integers of more than 4,300."""

_ONLY_COLON = re.compile(r"[\s:]*+")
_GEOMETRY_KEYS = frozenset({"bbox_2d", "poly"})


class Canonical(NamedTuple):
    """What the canonical form alone tells about an object."""

    desc: str
    geometry: GeometryType
    num_values: int
    """Coordinate texts in its array."""


@dataclass(slots=True)
class ScannedObject:
    """A value under an `object_N` key; all positions are characters of the scanned text."""

    key: str
    index: int
    start: int
    """Of its `{`, or of the list that stands in its place."""
    end: int = -1
    """Behind its `}`; -1 while open."""
    arrays: list[tuple[int, int]] = field(default_factory=list)
    """`[` and `]` of each array under a geometry key; `]` is -1 while open."""
    nesting: int = 1
    """Deepest nesting of braces and brackets inside."""
    in_list: bool = False
    """A list stood under the key: never a prediction, never a place to cut."""
    canonical: Canonical | None = None


@dataclass(slots=True)
class Scan:
    """The structure of a text."""

    objects: list[ScannedObject] = field(default_factory=list)
    """In appearance order."""
    keys: list[tuple[int, int]] = field(default_factory=list)
    """(N, character behind the key) of every top-level `object_N` key."""
    top: int | None = None
    """Behind the first top-level `{`; None when there is none."""
    cut: int = 0
    """Behind the last closed object, else `top`."""
    truncated: bool = True


def scan(text: str) -> Scan:
    """Structure of `text`; total: any text gives a result in one pass over its characters."""
    machine = _Machine(text)
    machine.run()
    return machine.result


class _Machine:
    """The state between two events. `depth` counts braces, `brackets` counts brackets, as in SPEC 5.2."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.result = Scan()
        self.depth = 0
        self.brackets = 0
        self.expecting_key = [False, False, False]
        self.pending: tuple[str, int, int] | None = None  # key, index, character behind it
        self.last_key: str | None = None
        self.current: ScannedObject | None = None
        self.capture: int | None = None  # bracket count outside the captured array
        self.closed = False  # the first top-level object has ended

    def run(self) -> None:
        text, position = self.text, 0
        while (event := _EVENT.search(text, position)) is not None:
            position = event.end()
            char = text[event.start()]
            if char == '"':
                if not event[2]:
                    return  # the text ends inside a string
                self._string(event[1], position)
            elif char in "{,":
                if char == "{":
                    self._open_brace(position)
                elif self.brackets == 0:
                    self.expecting_key[self.depth] = True
                    if self.depth == 1:
                        self.pending = None  # what stood under the key is over
                if self.depth == 1 and self.brackets == 0 and not self.closed:
                    position = self._canonical_run(position)
            elif char == ":":
                if self.brackets == 0:
                    self.expecting_key[self.depth] = False
            elif char == "[":
                self._open_bracket(event.start())
            else:
                if char == "]":
                    self._close_bracket(event.start())
                else:
                    self._close_brace(position)
                if self.closed and self.depth == 0 and self.brackets == 0:
                    break
        self.result.truncated = self.result.top is None or self.depth > 0 or self.brackets > 0

    def _canonical_run(self, position: int) -> int:
        """Takes canonical objects, and the commas between them, for as long as they follow each other."""
        text, result = self.text, self.result
        while (match := _CANONICAL.match(text, position)) is not None:
            position = match.end()
            geometry: GeometryType = "bbox_2d" if match[6] is None else "poly"
            opening, closing = match.span(5 if match[6] is None else 6)
            index = int(match[2])
            result.keys.append((index, match.end(1) + 1))
            num_values = text.count("<|coord_", opening, closing)
            canonical = Canonical(match[4], geometry, num_values)
            result.objects.append(
                ScannedObject(match[1], index, match.start(3), position, [(opening, closing - 1)], 3, False, canonical)
            )
            result.cut = position
            self.expecting_key[1] = False
            self.pending = None
            if not text.startswith(",", position):
                break
            position += 1
            self.expecting_key[1] = True
        return position

    def _string(self, body: str, end: int) -> None:
        if self.brackets or not self.expecting_key[self.depth]:
            return
        self.last_key = body
        if self.depth != 1 or self.closed:
            return
        match = _OBJECT_KEY.fullmatch(body)
        if match is not None:
            self.pending = (body, int(match[1]), end)
            self.result.keys.append((int(match[1]), end))
        elif "\\" in body and (match := _OBJECT_KEY.fullmatch(_unescape(body))) is not None:
            # An escaped spelling is no object key, but a reader of the target would see its number as taken.
            self.result.keys.append((int(match[1]), end))

    def _open_brace(self, end: int) -> None:
        self.depth += 1
        if self.depth == len(self.expecting_key):
            self.expecting_key.append(True)
        self.expecting_key[self.depth] = True
        if self.depth == 1 and self.result.top is None:
            self.result.top = self.result.cut = end
        elif self.depth == 2 and not self.closed:
            self.current = self._open_object(end - 1)
            self.pending = self.last_key = self.capture = None
        self._note_nesting()

    def _open_object(self, start: int) -> ScannedObject | None:
        if self.pending is None:
            return None
        key, index, key_end = self.pending
        match = _ONLY_COLON.match(self.text, key_end)
        assert match is not None
        if match.end() == start:
            opened = ScannedObject(key, index, start)
            self.result.objects.append(opened)
            return opened
        if self.text[match.end()] == "[":
            self.result.objects.append(ScannedObject(key, index, match.end(), start + 1, in_list=True))
        return None

    def _close_brace(self, end: int) -> None:
        if self.depth == 2 and self.current is not None:
            self.current.end = self.result.cut = end
            self.current = None
        self.depth = max(0, self.depth - 1)
        if self.depth == 0 and self.result.top is not None:
            self.closed = True

    def _open_bracket(self, start: int) -> None:
        if self.depth == 2 and self.current is not None and self.capture is None and self.last_key in _GEOMETRY_KEYS:
            self.capture = self.brackets
            self.current.arrays.append((start, -1))
        self.brackets += 1
        self._note_nesting()

    def _close_bracket(self, start: int) -> None:
        self.brackets = max(0, self.brackets - 1)
        if self.capture is not None and self.brackets <= self.capture:
            self.capture = None
            if self.current is not None:
                self.current.arrays[-1] = (self.current.arrays[-1][0], start)

    def _note_nesting(self) -> None:
        if self.current is not None:
            self.current.nesting = max(self.current.nesting, self.depth - 1 + self.brackets)


def _unescape(body: str) -> str:
    """The string that JSON reads from a literal's body; the body itself where JSON would refuse it."""
    try:
        value = json.loads(f'"{body}"')
    except ValueError:
        return body
    assert isinstance(value, str)
    return value
