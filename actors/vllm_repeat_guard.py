"""The repeat guard inside a vLLM worker: a logits processor that forces the end of turn on rows that were judged.

vLLM loads it by name (engine argument `logits_processors`) in the process that samples. A request carries its limits in
`SamplingParams.extra_args`; one without them is not watched. This is the interface of vLLM's first model runner; the
second has another one, so `engine_environment` asks for the first where the guard is enabled.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from vllm import SamplingParams
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from actors.codec import HubCodec
from protocol.repeat_guard import RepeatGuard, RepeatSettings

ARGUMENT = "rollmatch_repeat_guard"


def guard_arguments(settings: RepeatSettings | None, end_of_turn: int) -> dict[str, Any] | None:
    """`extra_args` of a request: plain values, since they cross to the engine's process."""
    return None if settings is None else {ARGUMENT: asdict(settings) | {"end_of_turn": end_of_turn}}


@dataclass(slots=True)
class _Row:
    guard: RepeatGuard
    end_of_turn: int
    answer: list[int]
    """vLLM's own list of the row's tokens, which grows by itself."""


class RepeatTermination(LogitsProcessor):  # type: ignore[misc]
    """Watches the rows of vLLM's batch; rows move between positions, and come back after a preemption."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._codec = HubCodec(cached_tokenizer_from_config(vllm_config.model_config))
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._rows, batch_update, _watch)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        ended = [(index, row.end_of_turn) for index, row in self._rows.items() if self._judge(row)]
        for index, end_of_turn in ended:
            logits[index] = -torch.inf
            logits[index, end_of_turn] = 0.0
        return logits

    def _judge(self, row: _Row) -> bool:
        for token in row.answer[row.guard.num_new :]:
            assert token >= 0, "vLLM fills placeholders of asynchronous steps before it calls logits processors"
            row.guard.feed(token, self._codec.piece(token))
        return row.guard.reason is not None


def _watch(params: SamplingParams, prompt_ids: list[int] | None, answer: list[int]) -> _Row | None:
    arguments = dict((params.extra_args or {}).get(ARGUMENT) or {})
    if not arguments:
        return None
    end_of_turn = arguments.pop("end_of_turn")
    return _Row(RepeatGuard(RepeatSettings(**arguments), prompt_ids or []), end_of_turn, answer)
