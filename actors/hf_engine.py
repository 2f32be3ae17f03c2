"""`RolloutEngine` over transformers' `generate`: for models that vLLM does not serve, and for beam search (SPEC 4.2).

A step is one whole batch: up to `rollout_generate_batch_size` waiting requests, padded on the left, generated to their
ends. Weights load between two batches, so a completion has one version. Greedy and sampled rows do not depend on the
rows beside them, beyond the rounding of batched arithmetic.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, GenerationConfig, LogitsProcessorList
from transformers.utils.logging import disable_progress_bar

from actors.codec import ChatFrame
from actors.engine import LoadReport, check_repeat_guard
from actors.hf_processors import RepeatTermination, SeededSampling, UnpaddedPenalty
from actors.images import open_image
from actors.settings import DecodeSettings, EngineSettings
from actors.weight_buckets import tensor_views, verify_buckets
from protocol.contracts import Completion, RolloutRequest
from protocol.errors import EngineError, PromptTooLongError, SyncError
from protocol.vocab import TokenCodec
from protocol.weights import Bucket, WeightsManifest

PIXEL_INPUTS = ("pixel_values", "image_grid_thw")
"""Inputs without a batch dimension: the images of all rows one after another."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: RolloutRequest
    inputs: dict[str, Tensor]
    """Of this request alone; token inputs are [1, P]."""

    @property
    def prompt_ids(self) -> list[int]:
        ids: list[int] = self.inputs["input_ids"][0].tolist()
        return ids


class HfEngine:
    """One transformers model in evaluation mode, in process."""

    def __init__(
        self, settings: EngineSettings, decode: DecodeSettings, frame: ChatFrame, codec: TokenCodec, processor: Any
    ) -> None:
        if settings.on_cpu:
            torch.set_num_threads(settings.num_threads)
        disable_progress_bar()
        self._decode = decode
        self._frame = frame
        self._codec = codec
        self._processor = processor
        self._max_pixels = settings.max_pixels
        self._device = torch.device("cpu" if settings.on_cpu else "cuda")
        self._model: Any = AutoModelForImageTextToText.from_pretrained(
            settings.model,
            dtype=getattr(torch, settings.dtype),
            attn_implementation=settings.attn_impl,
            local_files_only=True,
            use_safetensors=True,  # as the learner: pickled weights would run what they hold
        )
        self._model.to(self._device).eval()
        self._limit = settings.max_model_len or self._model.config.get_text_config().max_position_embeddings
        self._end_of_turn = frame.suffix_ids[0]
        self._model.generation_config = self._generation_config()
        self._waiting: deque[_Waiting] = deque()
        self._version = 0

    @property
    def version(self) -> int:
        return self._version

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting)

    def prepare(self, request: RolloutRequest) -> dict[str, Tensor]:
        image = open_image(request, self._max_pixels)
        inputs = dict(self._processor(text=[self._frame.prompt_text], images=[image], return_tensors="pt"))
        length = inputs["input_ids"].shape[1]
        if length >= self._limit:
            raise PromptTooLongError(
                f"{request.record.source}: the prompt has {length} tokens, the limit of prompt and answer together is "
                f"{self._limit}; raise rollout_matching.vllm.max_model_len or drop the record"
            )
        return inputs

    def submit(self, request: RolloutRequest, prepared: dict[str, Tensor]) -> None:
        self._waiting.append(_Waiting(request, prepared))

    def step(self) -> list[Completion]:
        batch = [self._waiting.popleft() for _ in range(min(self._decode.batch_size, len(self._waiting)))]
        if not batch:
            return []
        try:
            answers = self._generate(batch)
        except torch.OutOfMemoryError as error:
            raise EngineError(
                f"a batch of {len(batch)} prompts does not fit the GPU's memory ({error}); "
                "lower rollout_matching.rollout_generate_batch_size"
            ) from error
        return [self._completion(waiting, answer) for waiting, answer in zip(batch, answers, strict=True)]

    def load_weights(self, manifest: WeightsManifest, buckets: Sequence[Bucket]) -> LoadReport:
        started = time.monotonic()
        checksums = verify_buckets(manifest, buckets)
        parameters = dict(self._model.named_parameters())
        published = {entry.name for entry in manifest.tensors}
        missing = set(parameters) - published if manifest.full else set()
        if missing or not published <= set(parameters):
            raise SyncError(
                f"version {manifest.version}: the publish lacks {sorted(missing)[:3]} and the model does not know "
                f"{sorted(published - set(parameters))[:3]}; both sides must start from the same model.model"
            )
        with torch.no_grad():
            for name, value in tensor_views(manifest, buckets):
                if value.shape != parameters[name].shape:
                    raise SyncError(
                        f"{name}: published as {tuple(value.shape)}, the model has {tuple(parameters[name].shape)}; "
                        "both sides must start from the same model.model"
                    )
                parameters[name].copy_(value)
        self._version = manifest.version
        return LoadReport(
            version=self._version,
            bucket_checksums=checksums,
            load_seconds=time.monotonic() - started,
        )

    def sleep(self) -> None:
        raise NotImplementedError("cluster.colocate is refused with the hf backend, which cannot leave its device")

    def abort_all(self) -> None:
        self._waiting.clear()

    def close(self) -> None:
        self._waiting.clear()
        self._model = None

    def _generation_config(self) -> GenerationConfig:
        """Nothing is inherited from the checkpoint but its stop tokens: top_p 1, no top_k, as on every backend."""
        own = self._model.generation_config
        stops = own.eos_token_id if isinstance(own.eos_token_id, list) else [own.eos_token_id]
        return GenerationConfig(
            do_sample=False,
            num_beams=self._decode.num_beams,
            num_return_sequences=self._decode.num_return_sequences,
            eos_token_id=sorted({self._end_of_turn, *(stop for stop in stops if stop is not None)}),
            pad_token_id=own.pad_token_id if own.pad_token_id is not None else self._end_of_turn,
            return_dict_in_generate=True,
            output_scores=self._decode.num_beams > 1,
        )

    def _generate(self, batch: Sequence[_Waiting]) -> list[list[int]]:
        """Answers in the order of `batch`, each up to its stop token or its limit."""
        limits = [min(self._decode.max_new_tokens, self._limit - len(waiting.prompt_ids)) for waiting in batch]
        inputs = self._collate(batch)
        processors = self._processors(batch, inputs["input_ids"].shape[1])
        with torch.inference_mode():
            generated = self._model.generate(**inputs, max_new_tokens=max(limits), logits_processor=processors)
        rows = generated.sequences[:, inputs["input_ids"].shape[1] :]
        if self._decode.num_return_sequences > 1:
            scores = generated.sequences_scores.view(len(batch), -1)
            rows = rows.view(len(batch), scores.shape[1], -1)[range(len(batch)), scores.argmax(1)]
        return [self._cut(row)[:limit] for row, limit in zip(rows.tolist(), limits, strict=True)]

    def _collate(self, batch: Sequence[_Waiting]) -> dict[str, Tensor]:
        """Token inputs [B, P] padded on the left; pixels of all rows one after another."""
        longest = max(len(waiting.prompt_ids) for waiting in batch)
        fills = {"input_ids": self._model.generation_config.pad_token_id}
        inputs = {}
        for name in batch[0].inputs:
            values = [waiting.inputs[name] for waiting in batch]
            if name not in PIXEL_INPUTS:
                fill = fills.get(name, 0)
                values = [torch.nn.functional.pad(value, (longest - value.shape[1], 0), value=fill) for value in values]
            inputs[name] = torch.cat(values).to(self._device)
        return inputs

    def _processors(self, batch: Sequence[_Waiting], prompt_len: int) -> LogitsProcessorList:
        decode, prompts = self._decode, [waiting.prompt_ids for waiting in batch]
        processors = LogitsProcessorList()
        if decode.repetition_penalty != 1.0:
            padding = [prompt_len - len(prompt) for prompt in prompts]
            processors.append(UnpaddedPenalty(decode.repetition_penalty, padding, decode.num_beams))
        if decode.repeat is not None:
            processors.append(
                RepeatTermination(decode.repeat, self._codec, self._end_of_turn, prompts, prompt_len, decode.num_beams)
            )
        if decode.temperature > 0:
            seeds = [waiting.request.seed for waiting in batch]
            processors.append(SeededSampling(seeds, decode.temperature, self._device))
        return processors

    def _cut(self, row: list[int]) -> list[int]:
        """The answer up to its first stop token; behind it a shorter row holds padding."""
        stops = self._model.generation_config.eos_token_id
        end = next((i for i, token in enumerate(row) if token in stops), len(row))
        return row[: end + 1]

    def _completion(self, waiting: _Waiting, answer: list[int]) -> Completion:
        stops = self._model.generation_config.eos_token_id
        return Completion(
            key=waiting.request.key,
            prompt_token_ids=np.asarray(waiting.prompt_ids, dtype=np.int32),
            token_ids=np.asarray(answer, dtype=np.int32),
            finish_reason="stop" if answer[-1] in stops else "length",
            first_version=self._version,
            last_version=self._version,
            repeat_terminated=check_repeat_guard(self._decode.repeat, waiting.prompt_ids, answer, self._codec),
        )
