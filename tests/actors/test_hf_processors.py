"""What the hf backend adds to logits, without a model: no row sees the rows beside it."""

from __future__ import annotations

import torch

from actors.hf_processors import RepeatTermination, SeededSampling, UnpaddedPenalty
from actors.simulation import CharCodec
from protocol.repeat_guard import RepeatSettings

RUN_OF_TWO = RepeatSettings(min_new_tokens=0, max_consecutive_token_repeats=2, ngram_size=0)
A, B, EOS = ord("a"), ord("b"), 5
CPU = torch.device("cpu")


def test_noise_and_argmax_draw_from_the_softmax() -> None:
    logits = torch.log(torch.tensor([[0.6, 0.3, 0.1]]))
    sampling = SeededSampling([1], temperature=1.0, device=CPU)
    drawn = [int(sampling(torch.empty(0), logits).argmax()) for _ in range(3000)]
    shares = torch.bincount(torch.tensor(drawn), minlength=3) / len(drawn)
    torch.testing.assert_close(shares, torch.tensor([0.6, 0.3, 0.1]), atol=0.03, rtol=0)


def test_a_row_draws_the_same_noise_in_every_batch() -> None:
    logits = torch.zeros(3, 50)
    together, alone = SeededSampling([7, 8, 9], 0.5, CPU), SeededSampling([8], 0.5, CPU)
    for _ in range(4):
        assert torch.equal(together(torch.empty(0), logits)[1], alone(torch.empty(0), logits[:1])[0])


def test_padding_is_not_penalised() -> None:
    prompts = torch.tensor([[0, 0, 2, 3], [1, 2, 3, 4]])
    scores = UnpaddedPenalty(2.0, num_padding=[2, 0], num_beams=1)(prompts, torch.ones(2, 6))
    assert scores[0].tolist() == [1, 1, 0.5, 0.5, 1, 1]
    assert scores[1].tolist() == [1, 0.5, 0.5, 0.5, 0.5, 1]


def test_only_the_judged_row_is_forced_to_end() -> None:
    guard = RepeatTermination(RUN_OF_TWO, CharCodec(), EOS, [[1], [1]], prompt_len=1, num_beams=1)
    scores = torch.rand(2, 200)
    assert guard(torch.tensor([[1], [1]]), scores) is scores, "nothing is judged before the first token"
    guard(torch.tensor([[1, A], [1, A]]), scores)
    ended = guard(torch.tensor([[1, A, A], [1, A, B]]), scores)
    assert ended[0].argmax() == EOS
    assert torch.isneginf(ended[0]).sum() == 199
    assert torch.equal(ended[1], scores[1])


def test_a_guard_follows_its_beam_when_beams_are_reordered() -> None:
    guard = RepeatTermination(RUN_OF_TWO, CharCodec(), EOS, [[1]], prompt_len=1, num_beams=2)
    scores = torch.rand(2, 200)
    guard(torch.tensor([[1, A], [1, B]]), scores)
    swapped = guard(torch.tensor([[1, B, A], [1, A, A]]), scores)
    assert torch.equal(swapped[0], scores[0])
    assert swapped[1].argmax() == EOS
    both = guard(torch.tensor([[1, B, A, B], [1, B, A, A]]), scores)
    assert torch.equal(both[0], scores[0])
    assert both[1].argmax() == EOS, "one beam became two, and each is watched for itself"
