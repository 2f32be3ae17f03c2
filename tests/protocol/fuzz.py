"""Feeds random bytes to every property for as long as asked.

    python -m tests.protocol.fuzz --seconds 600 [--seed N]

Stops at the first input that breaks a property: prints the property, the bytes and the error, and exits with 1. The
last line is a JSON object with the number of inputs per property.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable

from protocol.matching import MatchSettings
from tests.protocol.checks import (
    check_iou,
    check_labels,
    check_match,
    check_more_predictions,
    check_parse,
    check_prefix,
    check_rejects,
    check_target,
    check_truth_order,
    make_target,
)
from tests.protocol.codecs import CharCodec, TinyCodec, qwen_codec
from tests.protocol.strategies import Dealer, answered, match_case, muddled, mutilated

CHAR, TINY, QWEN = CharCodec(), TinyCodec(3), qwen_codec()
LOOSE = MatchSettings(maskiou_gate=0.0, maskiou_resolution=64)
RESOLUTIONS = (256, 64, 100, 7, 1, 1000)


def any_tokens(raw: bytes) -> None:
    """Ids in and around the tiny vocabulary."""
    ids = [byte % (TINY.vocabulary_size + 2) - 1 for byte in raw]
    check_parse(ids, TINY)
    check_prefix(ids, TINY)


def any_qwen_tokens(raw: bytes) -> None:
    """Ids of the real vocabulary: half of them coordinates and structure, the rest anything."""
    dealer = Dealer(raw)
    common = QWEN.encode('{"object_1": {"desc": "a", "bbox_2d": ["<|coord_5|>", [["]}}, <|im_end|>')
    ids = [
        dealer.one_of(tuple(common)) if dealer.number(2) else dealer.number(65536) * 3 % 153_000
        for _ in range(dealer.number(80))
    ]
    check_parse(ids, QWEN)
    check_rejects(ids, QWEN)


def mutilated_answers(raw: bytes) -> None:
    text = mutilated(raw)
    for codec in (CHAR, TINY, QWEN):
        ids = codec.encode(text)
        check_parse(ids, codec)
        check_prefix(ids, codec)
        check_rejects(ids, codec)
    check_parse(TINY.damage(TINY.encode(text)), TINY)


def targets(raw: bytes) -> None:
    case = answered(raw)
    check_target(case.text, case.record, CHAR, case.policy, LOOSE)


def labels(raw: bytes) -> None:
    case = muddled(raw)
    for codec in (CHAR, QWEN):
        check_labels(make_target(case.text, case.record, codec, case.policy, LOOSE)[2], codec)


def ious(raw: bytes) -> None:
    dealer = Dealer(raw)
    check_iou(dealer.shape(), dealer.shape(), dealer.one_of(RESOLUTIONS))


def matching(raw: bytes) -> None:
    case = match_case(raw)
    check_match(case.predictions, case.truths, case.settings)
    check_truth_order(case.predictions, case.truths, case.order, case.settings)
    check_more_predictions(case.predictions, case.extra, case.truths, case.settings)


PROPERTIES: tuple[Callable[[bytes], None], ...] = (
    any_tokens,
    any_qwen_tokens,
    mutilated_answers,
    targets,
    labels,
    ious,
    matching,
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.protocol.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=time.time_ns())
    options = parser.parse_args()
    rng = random.Random(options.seed)
    counts: Counter[str] = Counter()
    stop = time.monotonic() + options.seconds
    while time.monotonic() < stop:
        for check in PROPERTIES:
            raw = rng.randbytes(rng.choice((8, 40, 120, 240)))
            try:
                check(raw)
            except Exception:  # the boundary of the fuzzer: any error is the finding, shown with its input
                traceback.print_exc()
                print(f"{check.__name__} fails on bytes.fromhex({raw.hex()!r})")
                return 1
            counts[check.__name__] += 1
    print(json.dumps({"seed": options.seed, "seconds": options.seconds, "inputs": counts, "total": counts.total()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
