"""A rollout actor without a model: scripted answers, one token per character, everything else as in production.

It starts in milliseconds and needs no image, so that pools of hundreds of actors, and hundreds of faults, can be
simulated on real Ray. Parsing, matching, targets, streams, heartbeats and syncs are the production code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from actors.engine import RolloutEngine
from actors.rollout_actor import RolloutActor
from actors.scripted_engine import Pace, Script, ScriptedEngine
from actors.settings import ActorSettings, DecodeSettings, EngineSettings
from protocol.contracts import RolloutRequest
from protocol.matching import MatchSettings
from protocol.serialization import assistant_text
from protocol.targets import TargetSettings
from protocol.vocab import NUM_BINS, coord_token


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """How a simulated engine answers, and how long it takes."""

    step_s: float = 0.0
    """Seconds per engine step, however many requests run; for a model of latency set `pace` instead."""
    tokens_per_step: int = 16
    max_new_tokens: int = 4096
    max_num_seqs: int = 1 << 30
    pace: Pace | None = None
    answers: Script | None = None
    """None: the first half of a record's objects."""
    trace: bool = False
    """Answers carry what `rollouts.jsonl` records."""


class SimulatedActor(RolloutActor):
    """`RolloutActor` over a `ScriptedEngine`."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulated_settings(simulation))
        self._simulation = simulation

    def _open(self) -> Callable[[], RolloutEngine]:
        codec = CharCodec()
        self._codec = codec
        self._suffix_ids = codec.encode("<|im_end|>\n")
        simulation = self._simulation
        return lambda: ScriptedEngine(
            codec,
            simulation.answers or finds_half,
            tokens_per_step=simulation.tokens_per_step,
            max_new_tokens=simulation.max_new_tokens,
            max_num_seqs=simulation.max_num_seqs,
            pace=simulation.pace or Pace(token_s=simulation.step_s / simulation.tokens_per_step),
        )


def finds_half(request: RolloutRequest, _version: int) -> str:
    """A script: the first half of what is there."""
    objects = request.record.objects
    return assistant_text(objects[: (len(objects) + 1) // 2])


def simulated_settings(simulation: Simulation) -> ActorSettings:
    """Settings that name no model."""
    return ActorSettings(
        engine=EngineSettings(model="", dtype="float32", max_model_len=1 << 20, num_threads=1, on_cpu=True),
        decode=DecodeSettings(max_new_tokens=simulation.max_new_tokens),
        system_prompt="",
        user_prompt="",
        match=MatchSettings(),
        target=TargetSettings(max_length=1 << 20),
        trace=simulation.trace,
    )


class CharCodec:
    """One id per character (its code point); special texts are one id each, above all code points."""

    _SPECIAL = re.compile(r"<\|(?:coord_([0-9]{1,3})|im_end|im_start|endoftext)\|>")
    _BASE = 0x110000

    @cached_property
    def _texts(self) -> list[str]:
        return [coord_token(bin_) for bin_ in range(NUM_BINS)] + ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {text: self._BASE + at for at, text in enumerate(self._texts)}

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        position = 0
        for match in self._SPECIAL.finditer(text):
            special = self._ids.get(match[0])
            if special is None:
                continue
            ids += [*map(ord, text[position : match.start()]), special]
            position = match.end()
        return ids + [ord(char) for char in text[position:]]

    def piece(self, token_id: int) -> str:
        if token_id < 0:
            return ""
        if token_id < self._BASE:
            return chr(token_id)
        at = token_id - self._BASE
        return self._texts[at] if at < len(self._texts) else ""

    @cached_property
    def coord_bins(self) -> Mapping[int, int]:
        return {self._BASE + bin_: bin_ for bin_ in range(NUM_BINS)}
