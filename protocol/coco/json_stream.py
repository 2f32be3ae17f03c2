"""Reads a JSON file part by part: as Python objects a file of 1 GB takes six, of which an import needs half a one.

The text lies in a window that moves over the file. What is malformed at the window's end may only be cut off there, so
it is read again with more text, and is an error where none is left; what is malformed before that is one at once.

Not ijson: it reads the file once per list, and a list that is missing is an empty one to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

WINDOW = 2**20
"""Characters that are read at a time; a value that is longer is held as a whole."""
_SPACE = " \t\n\r"
_UNFINISHED = 3
"""Characters behind a number that may belong to it though it can end before them, as `e-7` in `1e-7` or `.5` in `1.5`,
where the window ends within them."""
_CUT_OFF = 16
"""Characters before the window's end within which what is malformed may only be cut off: more than the longest words
have, `-Infinity` and a pair of `\\uXXXX`. A text without its end is told of at its beginning."""
_DECODER = json.JSONDecoder()


def open_json(path: Path) -> TextIO:
    """The file's text, in the encoding that its first bytes show, as `json.loads` would decode it."""
    with open(path, "rb") as file:
        encoding = json.detect_encoding(file.read(4))
    return open(path, encoding=encoding, errors="surrogatepass", newline="")  # a place in it counts both of \r\n


def _is_final(error: json.JSONDecodeError) -> bool:
    """Whether more text cannot mend it."""
    return error.pos + _CUT_OFF < len(error.doc) and not error.msg.startswith("Unterminated string")


class JsonStream:
    """The next part of a JSON text. ValueError, with the place in the file, where it is malformed."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._text = ""
        self._at = 0
        self._before = 0
        """Characters of the file before the window."""

    def members(self) -> Iterator[str]:
        """Keys of the object that begins here. Whoever takes one reads its value before the next."""
        for _ in self._parts("{", "}"):
            key = self.value()
            if not isinstance(key, str):
                raise self._error("a key must be text")
            self._take(":")
            yield key

    def elements(self) -> Iterator[Any]:
        """Values of the list that begins here."""
        for _ in self._parts("[", "]"):
            yield self.value()

    def value(self) -> Any:
        """The value that begins here, as a whole."""
        self.peek()
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                if _is_final(error) or not self._more():
                    raise self._error(error.msg, error.pos) from error
            else:
                if end + _UNFINISHED <= len(self._text) or not self._more():
                    self._at = end
                    return value

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _SPACE:
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def end(self) -> None:
        """ValueError where anything is left."""
        if self.peek():
            raise self._error("there is more behind its end")

    def _parts(self, opening: str, closing: str) -> Iterator[None]:
        """Once before each part of what the two enclose."""
        self._take(opening)
        if self.peek() == closing:
            self._take(closing)
            return
        while True:
            yield
            if self._take("," + closing) == closing:
                return

    def _take(self, characters: str) -> str:
        found = self.peek()
        if not found or found not in characters:
            raise self._error(f"expected {' or '.join(characters)}")
        self._at += 1
        return found

    def _more(self) -> bool:
        """Moves the window on and at least doubles what is left of it, so that a long value is read in linear time;
        False at the end of the file, where it stays."""
        left = self._text[self._at :]
        piece = self._file.read(max(WINDOW, len(left)))
        if piece:
            self._before += self._at
            self._text, self._at = left + piece, 0
        return bool(piece)

    def _error(self, message: str, at: int | None = None) -> ValueError:
        return ValueError(f"{message}, at character {self._before + (self._at if at is None else at)}")
