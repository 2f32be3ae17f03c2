"""Inputs for property tests and for the fuzzer: bytes in, rollouts, shapes and records out.

One draw of bytes per example costs a tenth of nested strategies, shrinks towards zeros, and the fuzzer feeds the same
functions with random bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NamedTuple, TypeVar

from hypothesis import strategies as st

from protocol.appending import object_entry
from protocol.contracts import GroundTruth, Record, Shape
from protocol.matching import MatchSettings
from protocol.targets import PrefixPolicy
from protocol.vocab import coord_token

T = TypeVar("T")

EXAMPLES = 1000
"""Per property that the specification states, in the default run."""
FEW_EXAMPLES = 300
"""Per property that only backs one of those up."""

DESCS = ("cat", "red dog", ' "big" dog ', "猫", "a/b", "x\\", "(é)", "object_3", "desc", '{"', "[")


class Dealer:
    """Deals small numbers from bytes; zeros when they are used up."""

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._at = 0

    def number(self, limit: int) -> int:
        """In 0..limit-1; two bytes where one is too small."""
        value = 0
        for _ in range(1 if limit <= 256 else 2):
            value = value * 256 + (self._raw[self._at] if self._at < len(self._raw) else 0)
            self._at += 1
        return value % limit

    def one_of(self, options: tuple[T, ...]) -> T:
        return options[self.number(len(options))]

    def some(self, deal: Callable[[], T], limit: int) -> list[T]:
        """0..limit of them."""
        return [deal() for _ in range(self.number(limit + 1))]

    def bin(self) -> int:
        return self.number(1000)

    def near_bin(self) -> int:
        """Of 41 values: overlaps, ties and equal shapes are frequent."""
        return self.number(41) * 7

    def box(self) -> Shape:
        draw = self.bin if self.number(4) == 0 else self.near_bin
        return Shape("bbox_2d", (draw(), draw(), draw(), draw()))

    def poly(self) -> Shape:
        draw = self.bin if self.number(4) == 0 else self.near_bin
        return Shape("poly", tuple(draw() for _ in range(6 + 2 * self.number(4))))

    def shape(self) -> Shape:
        return self.poly() if self.number(4) == 3 else self.box()


def _quoted(*bins: int) -> str:
    return ", ".join(f'"{coord_token(bin_)}"' for bin_ in bins)


def _chunks() -> tuple[str, ...]:
    """256 pieces of answers: whole objects, odd ones, keys, structure."""
    boxes = [Shape("bbox_2d", (0, 111, 222, 333)), Shape("bbox_2d", (999, 0, 0, 444))]
    polys = [Shape("poly", (0, 111, 222, 333, 444, 555)), Shape("poly", (0, 0, 111, 111, 222, 222, 333, 333))]
    whole = [
        object_entry(index, desc, shape) for index in (1, 2, 10) for desc in DESCS[:5] for shape in (*boxes, *polys)
    ]
    odd = [
        '"object_1": 5',
        '"object_4": {"desc": "a", "bbox_2d": [1, 2, 3, 4]}',
        f'"object_5": {{"bbox_2d": [{_quoted(0, 111, 222, 333)}], "desc": " a "}}',
        f'"object_6": {{"desc": "a", "bbox_2d": [[{_quoted(0, 111)}], [{_quoted(222, 333)}]]}}',
        f'"object_7": {{"desc": "a", "poly": [{_quoted(0, 111, 222, 333, 444, 555)}]}}',
        f'"object_7": {{"desc": "a", "poly": [[{_quoted(0, 111)}], [{_quoted(222, 333)}]]}}',
        f'"object_8": {{"desc": " ", "bbox_2d": [{_quoted(0, 111, 222, 333)}]}}',
        f'"object_8": {{"desc": "\\ud800", "bbox_2d": [{_quoted(0, 111, 222, 333)}]}}',
        f'"object_9": {{"desc": "a", "bbox_2d": [{_quoted(0, 111, 222)}]}}',
        f'"object_9": {{"desc": "a", "bbox_2d": [{_quoted(0, 111, 222, 333)}], "score": {{"x": [1]}}}}',
        f'"object_11": {{"desc": "a", "bbox_2d": [{_quoted(0, 0, 0, 0)}], "bbox_2d": [{_quoted(0, 0, 0, 0)}]}}',
        f'"object_12": {{"desc":"a","bbox_2d":[{_quoted(0, 111, 222, 333).replace(" ", "")}]}}',
        f'"object_13": [{{"desc": "a", "bbox_2d": [{_quoted(0, 111, 222, 333)}]}}]',
        '"object_14": {"desc": "a", "bbox_2d": null, "poly": []}',
        '"object_15": {"desc": "a", "bbox_2d": ["<|coord_1000|>", "<|coord_007|>", "1", "2"]}',
        '"foo": {"object_3": {}}',
        '"foo": [{"a": "}"}, "]"]',
        '"obj\\u0065ct_20": {}',
        '"object_01": {}',
        "\n\t ",
        "```json\n",
    ]
    keys = ['"object_1"', '"object_2": ', '"desc": ', '"desc": "', '"bbox_2d": [', '"poly": [[', '"foo": ', "object_3"]
    structure = [*'{}[],:"\\ a1', ", ", ": ", '", "', '"]', "}}", "]}", "]]}", "<|im_end|>", "<|im_", "end|>"]
    coords = [f'"{coord_token(bin_)}"' for bin_ in (0, 111, 999)] + [coord_token(222)]
    single = odd + keys + structure + coords + list(DESCS)
    return tuple((single * 2 + structure + whole * 2)[:256])


CHUNKS = _chunks()


def mutilated(raw: bytes) -> str:
    """Text that begins like an answer and goes wrong anywhere."""
    dealer = Dealer(raw)
    parts = ["{" if dealer.number(8) else ""]
    for at in range(dealer.number(11)):
        parts += ["" if at == 0 or dealer.number(4) == 3 else ", ", dealer.one_of(CHUNKS)]
    text = "".join(parts) + ("}" if dealer.number(2) else "")
    return text[: len(text) - dealer.number(32)] if dealer.number(3) == 2 else text


def _entry(dealer: Dealer, index: int) -> tuple[str, str]:
    """Key and value of one entry of an answer that is valid JSON; half of them are valid objects."""
    desc, shape = dealer.one_of(DESCS), dealer.shape()
    entry = object_entry(index, desc, shape)
    key, value = f"object_{index}", entry[entry.index("{") :]
    others = (
        (f"thing_{index}", value),
        (key, "5"),
        (key, f"[{value}]"),
        (key, value[:-1] + ', "score": [{"object_9": {}}]}'),
        (key, '{"desc": "a", "poly": []}'),
        (key, json.dumps({"desc": desc, "bbox_2d": ["]}", "{"]})),
        (key, "null"),
        (f"obj\\u0065ct_{index}", "{}"),
    )
    form = dealer.number(16)
    return (key, value) if form < 8 else others[form - 8]


def _answer(dealer: Dealer) -> str:
    """A valid JSON object with unique keys, perhaps cut off behind its first brace."""
    step = 1 + dealer.number(3)
    entries = [_entry(dealer, 1 + at * step) for at in range(dealer.number(5))]
    text = "{" + ", ".join(f'"{key}": {value}' for key, value in entries) + "}"
    return text[: max(1, len(text) - dealer.number(40))] if dealer.number(2) else text


def record_of(objects: list[tuple[str, Shape]]) -> Record:
    """A record in payload order."""
    truths = tuple(
        GroundTruth(index=at, desc=desc.strip(), shape=shape) for at, (desc, shape) in enumerate(objects, start=1)
    )
    return Record(index=0, source="drawn:1", images=("a.jpg",), width=640, height=480, objects=truths)


class TargetCase(NamedTuple):
    text: str
    record: Record
    policy: PrefixPolicy


def _target_case(raw: bytes, text: Callable[[Dealer], str]) -> TargetCase:
    dealer = Dealer(raw)
    policies: tuple[PrefixPolicy, ...] = ("rollout", "matched")
    record = record_of(dealer.some(lambda: (dealer.one_of(DESCS), dealer.shape()), 4))
    return TargetCase(text(dealer), record, dealer.one_of(policies))


def answered(raw: bytes) -> TargetCase:
    """A rollout that is the beginning of valid JSON."""
    return _target_case(raw, _answer)


def muddled(raw: bytes) -> TargetCase:
    """A rollout that may be anything."""
    return _target_case(raw[:64], lambda _: mutilated(raw[64:]))


class MatchCase(NamedTuple):
    predictions: list[Shape]
    truths: list[Shape]
    extra: Shape
    settings: MatchSettings
    order: list[int]
    """A permutation of the truths."""


def match_case(raw: bytes) -> MatchCase:
    dealer = Dealer(raw)
    settings = MatchSettings(
        candidate_top_k=1 + dealer.number(4),
        maskiou_gate=dealer.one_of((0.0, 0.1, 0.3, 0.5)),
        maskiou_resolution=dealer.one_of((256, 32)),
        fp_cost=dealer.one_of((0.2, 0.5, 1.0)),
        fn_cost=dealer.one_of((0.2, 1.0, 2.0)),
    )
    predictions, truths = dealer.some(dealer.shape, 5), dealer.some(dealer.shape, 5)
    keys = [(dealer.number(256), at) for at in range(len(truths))]
    return MatchCase(predictions, truths, dealer.shape(), settings, [at for _, at in sorted(keys)])


def drawn(size: int) -> st.SearchStrategy[bytes]:
    """Bytes for one of the functions above; always `size` of them, since a short draw only deals zeros."""
    return st.binary(min_size=size, max_size=size)
