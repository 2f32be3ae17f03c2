"""The repeat guard: what ends a rollout, and in which order it is looked for."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from protocol.repeat_guard import (
    OBJECT_KEY,
    KeyCounter,
    RepeatGuard,
    RepeatReason,
    RepeatSettings,
    num_tokens_at_verdict,
)
from tests.protocol.codecs import qwen_codec
from tests.protocol.reference import reference_verdict
from tests.protocol.strategies import FEW_EXAMPLES, Dealer, drawn, mutilated

RUN_ONLY = RepeatSettings(min_new_tokens=0, max_consecutive_token_repeats=3, ngram_size=0)
NGRAM_ONLY = RepeatSettings(min_new_tokens=0, max_consecutive_token_repeats=0, ngram_size=2, ngram_repeats=3)
KEYS_ONLY = RepeatSettings(min_new_tokens=0, max_consecutive_token_repeats=0, ngram_size=0, max_object_keys=2)


def test_equal_tokens_in_a_row_end_a_rollout() -> None:
    assert reference_verdict([7, 8, 5, 5, 5], 2, 0, RUN_ONLY) is RepeatReason.TOKEN_RUN
    assert reference_verdict([7, 8, 5, 5, 6], 2, 0, RUN_ONLY) is None


def test_a_run_may_reach_back_into_the_prompt() -> None:
    assert reference_verdict([7, 5, 5, 5], 3, 0, RUN_ONLY) is RepeatReason.TOKEN_RUN


def test_a_repeated_block_ends_a_rollout_once_it_is_generated_as_often() -> None:
    assert reference_verdict([9, 1, 2, 1, 2, 1, 2], 1, 0, NGRAM_ONLY) is RepeatReason.NGRAM
    assert reference_verdict([1, 2, 1, 2, 1, 2], 1, 0, NGRAM_ONLY) is None
    assert reference_verdict([9, 1, 2, 1, 2, 1, 3], 1, 0, NGRAM_ONLY) is None


def test_the_last_allowed_key_ends_a_rollout() -> None:
    assert reference_verdict([1], 0, 1, KEYS_ONLY) is None
    assert reference_verdict([1], 0, 2, KEYS_ONLY) is RepeatReason.OBJECT_KEYS


def test_keys_are_looked_at_before_runs() -> None:
    both = RepeatSettings(min_new_tokens=0, max_consecutive_token_repeats=2, ngram_size=0, max_object_keys=1)
    assert reference_verdict([5, 5], 0, 1, both) is RepeatReason.OBJECT_KEYS


@pytest.mark.parametrize("num_new", [0, 1, 2])
def test_nothing_is_judged_before_enough_tokens(num_new: int) -> None:
    patient = RepeatSettings(min_new_tokens=3, max_consecutive_token_repeats=1, ngram_size=0)
    assert reference_verdict([4] * (2 + num_new), 2, 99, patient) is None


def test_keys_are_counted_in_the_text_of_real_tokens() -> None:
    codec, guard = qwen_codec(), RepeatGuard(KEYS_ONLY, prompt_ids=[1, 2])
    verdicts = [guard.feed(i, codec.piece(i)) for i in codec.encode('{"object_1": {"desc": "a"}, "object_2": {"de')]
    fired = verdicts.index(RepeatReason.OBJECT_KEYS)
    assert verdicts[:fired] == [None] * fired
    assert verdicts[fired:] == [RepeatReason.OBJECT_KEYS] * (len(verdicts) - fired)


def test_a_description_that_looks_like_a_key_is_not_counted() -> None:
    assert KeyCounter().feed('{"object_1": {"desc": "object_2", "x": "object_3"') == 1


@settings(max_examples=FEW_EXAMPLES, deadline=None)
@given(drawn(40))
def test_the_count_does_not_depend_on_how_text_is_cut_into_pieces(raw: bytes) -> None:
    dealer, text = Dealer(raw[30:]), mutilated(raw[:30])
    counter, at = KeyCounter(), 0
    while at < len(text):
        step = 1 + dealer.number(7)
        counter.feed(text[at : at + step])
        at += step
    assert counter.count == len(OBJECT_KEY.findall(text))


@settings(max_examples=FEW_EXAMPLES, deadline=None)
@given(drawn(60))
def test_the_guard_says_at_every_token_what_its_definition_says(raw: bytes) -> None:
    """`RepeatGuard` is `reference_verdict` in constant time: prompts, runs, blocks and their limits drawn small."""
    dealer = Dealer(raw)
    limits = RepeatSettings(
        min_new_tokens=dealer.number(5),
        max_consecutive_token_repeats=dealer.number(5),
        ngram_size=dealer.number(4),
        ngram_repeats=dealer.number(4),
    )
    tokens = [dealer.number(2) for _ in range(dealer.number(4))]
    prompt_len = len(tokens)
    guard = RepeatGuard(limits, tokens)
    for token in [dealer.number(2) for _ in range(24)]:
        tokens.append(token)
        expected = reference_verdict(tokens, prompt_len, 0, limits)
        assert guard.feed(token, "") is expected
        if expected is not None:
            break


def test_the_verdict_of_a_whole_answer_counts_the_tokens_up_to_it() -> None:
    answer = [(token, "") for token in (5, 6, 6, 6, 9)]
    assert num_tokens_at_verdict(RUN_ONLY, [1], answer) == 4
    assert num_tokens_at_verdict(RUN_ONLY, [1], answer[:3]) is None
