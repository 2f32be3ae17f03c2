"""Logits processors of the hf backend. None of them lets a row depend on who shares its batch.

Order: repetition penalty, repeat guard, sampling.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor
from transformers import LogitsProcessor, RepetitionPenaltyLogitsProcessor

from protocol.repeat_guard import RepeatGuard, RepeatSettings
from protocol.vocab import TokenCodec


class UnpaddedPenalty(RepetitionPenaltyLogitsProcessor):  # type: ignore[misc]
    """Repetition penalty over prompt and answer, as vLLM has it: padding is no token that was written before.

    Args:
        penalty: divides positive logits, multiplies negative ones.
        num_padding: left padding of each prompt.
        num_beams: rows per prompt.
    """

    def __init__(self, penalty: float, num_padding: Sequence[int], num_beams: int) -> None:
        super().__init__(penalty)
        self._num_padding = torch.tensor(num_padding).repeat_interleave(num_beams)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        first_real = self._num_padding.to(input_ids.device)[:, None]
        padded = torch.arange(input_ids.shape[1], device=input_ids.device) < first_real
        return super().__call__(torch.where(padded, input_ids.gather(1, first_real), input_ids), scores)


class RepeatTermination(LogitsProcessor):  # type: ignore[misc]
    """Forces the end of turn on rows that `RepeatGuard` judged; other rows keep their scores (SPEC 4.3, A16).

    Beam search reorders rows between two calls, so there a row's guard is the one that watched its tokens before.

    Args:
        prompts: token ids of each prompt, without padding.
        prompt_len: padded length of the prompts.
    """

    def __init__(
        self,
        settings: RepeatSettings,
        codec: TokenCodec,
        end_of_turn: int,
        prompts: Sequence[Sequence[int]],
        prompt_len: int,
        num_beams: int,
    ) -> None:
        self._codec = codec
        self._end_of_turn = end_of_turn
        self._prompt_len = prompt_len
        self._num_beams = num_beams
        self._guards = [RepeatGuard(settings, prompt) for prompt in prompts for _ in range(num_beams)]
        self._answers: list[tuple[int, ...]] = [()] * len(self._guards)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] == self._prompt_len:
            return scores
        if self._num_beams > 1:
            self._follow(input_ids[:, self._prompt_len :].tolist())
        for guard, token in zip(self._guards, input_ids[:, -1].tolist(), strict=True):
            guard.feed(token, self._codec.piece(token))
        ended = torch.tensor([guard.reason is not None for guard in self._guards], device=scores.device)
        if ended.any():
            scores = scores.masked_fill(ended[:, None], -torch.inf)
            scores[ended, self._end_of_turn] = 0.0
        return scores

    def _follow(self, answers: list[list[int]]) -> None:
        before = {
            (row // self._num_beams, answer): guard
            for row, (answer, guard) in enumerate(zip(self._answers, self._guards, strict=True))
        }
        self._guards = [
            deepcopy(before[row // self._num_beams, tuple(answer[:-1])]) for row, answer in enumerate(answers)
        ]
        self._answers = [tuple(answer) for answer in answers]


class SeededSampling(LogitsProcessor):  # type: ignore[misc]
    """Sampling as an argmax: adding Gumbel noise to `logits / temperature` draws from their softmax.

    Each row has a generator of its own, seeded by its request, so its noise does not depend on the rows beside it.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, device: torch.device) -> None:
        self._temperature = max(1e-4, temperature)
        self._generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self._generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() / self._temperature - noise.log()
