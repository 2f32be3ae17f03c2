"""`RolloutEngine` over vLLM: the one door to it on the rollout side.

The actor owns an `LLMEngine` and steps it itself, so that finished completions leave one by one and loading weights is
simply something that happens between two steps. The engine core runs in this process, where weight buckets are read as
the object store mapped them: vLLM's own process for it would have to be sent them, and what it unpacks are no buckets
any more. Workers of a tensor-parallel engine are processes of vLLM, to which it pickles them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from actors import vllm_weights
from actors.adapter import adapter_request, load_adapter
from actors.attestation import Probe
from actors.codec import ChatFrame
from actors.engine import LoadReport, check_repeat_guard
from actors.images import open_image
from actors.settings import DecodeSettings, EngineSettings
from actors.vllm_environment import engine_environment, stat_loggers
from protocol.contracts import Completion, RolloutRequest
from protocol.errors import EngineError, PromptTooLongError
from protocol.vocab import TokenCodec
from protocol.weights import Bucket, WeightsManifest

PROBED_TOKENS = 5
"""Likeliest tokens per position whose probabilities a probe reports."""


class VllmEngine:
    """One vLLM engine, in process, stepped by its owner."""

    def __init__(
        self, settings: EngineSettings, decode: DecodeSettings, frame: ChatFrame, codec: TokenCodec, processor: Any
    ) -> None:
        os.environ.update(engine_environment(settings))
        from vllm import EngineArgs, LLMEngine

        from actors.vllm_plugin import BACKEND

        self._frame = frame
        self._codec = codec
        self._decode = decode
        self._max_model_len = settings.max_model_len
        self._max_pixels = settings.max_pixels
        self._requests: dict[str, RolloutRequest] = {}
        self._asleep = False
        self._adapter: Any = None
        """What every request names once an adapter was published."""
        options = dict(settings.options)
        self._engine = LLMEngine.from_engine_args(
            EngineArgs(
                model=settings.model,
                dtype=settings.dtype,
                max_model_len=settings.max_model_len,
                enforce_eager=options.pop("enforce_eager", settings.on_cpu),
                limit_mm_per_prompt=options.pop("limit_mm_per_prompt", None) or {"image": 1, "video": 0},
                # In a placement group vLLM would place its tensor parallel workers with Ray, where this actor already
                # holds the GPUs: they are processes of this actor instead.
                distributed_executor_backend="mp" if options.get("tensor_parallel_size", 1) > 1 else "uni",
                weight_transfer_config={"backend": BACKEND},
                worker_extension_cls="actors.vllm_plugin.WorkerExtension",
                logits_processors=["actors.vllm_repeat_guard:RepeatTermination"] if settings.watches_repeats else None,
                disable_log_stats=not settings.export_stats,
                **options,
            ),
            stat_loggers=stat_loggers() if settings.export_stats else None,
        )
        self._params = self._sampling_params()
        self._engine.collective_rpc("init_weight_transfer_engine", args=({},))
        self._engine.set_weight_version("0")

    @property
    def version(self) -> int:
        return int(self._engine.get_weight_version())

    @property
    def num_unfinished(self) -> int:
        return len(self._requests)

    def prepare(self, request: RolloutRequest) -> Any:
        image = open_image(request, self._max_pixels)
        prompt = {"prompt": self._frame.prompt_text, "multi_modal_data": {"image": image}}
        with self._refusing(request):
            (prepared,) = self._engine.renderer.render_cmpl([prompt])
        return prepared

    def submit(self, request: RolloutRequest, prepared: Any) -> None:
        params = self._params.clone()
        params.seed = request.seed if self._decode.temperature > 0 else None
        self._add(request, prepared, params)
        self._requests[str(request.key)] = request

    def _add(self, request: RolloutRequest, prepared: Any, params: Any) -> None:
        self._wake()
        with self._refusing(request):
            self._engine.add_request(str(request.key), prepared, params, lora_request=self._adapter)

    @contextlib.contextmanager
    def _refusing(self, request: RolloutRequest) -> Iterator[None]:
        """What vLLM says of a prompt that cannot work is a matter of that record."""
        from vllm.exceptions import VLLMValidationError

        try:
            yield
        except (VLLMValidationError, ValueError) as error:
            raise PromptTooLongError(
                f"{request.record.source}: the engine refused the prompt ({error}); "
                f"raise rollout_matching.vllm.max_model_len (now {self._max_model_len}) or drop the record"
            ) from error

    def _sampling_params(self) -> Any:
        """What all requests share; each adds its seed."""
        from vllm import SamplingParams

        from actors.vllm_repeat_guard import guard_arguments

        end_of_turn = self._frame.suffix_ids[0]
        return SamplingParams(
            temperature=self._decode.temperature,
            top_p=1.0,
            top_k=0,
            repetition_penalty=self._decode.repetition_penalty,
            max_tokens=self._decode.max_new_tokens,
            stop_token_ids=[end_of_turn],
            detokenize=False,
            extra_args=guard_arguments(self._decode.repeat, end_of_turn),
        )

    def step(self) -> list[Completion]:
        return [self._completion(output) for output in self._engine.step() if output.finished]

    def _completion(self, output: Any) -> Completion:
        request = self._requests.pop(output.request_id)
        answer = output.outputs[0]
        spans = answer.weight_versions
        if not spans or answer.finish_reason not in ("stop", "length"):
            raise EngineError(
                f"{request.key}: vLLM finished with reason {answer.finish_reason!r} and weight versions {spans!r}, "
                "expected stop or length and at least one version; restart the engine"
            )
        return Completion(
            key=request.key,
            prompt_token_ids=np.asarray(output.prompt_token_ids, dtype=np.int32),
            token_ids=np.asarray(answer.token_ids, dtype=np.int32),
            finish_reason=answer.finish_reason,
            first_version=int(spans[0].version),
            last_version=int(spans[-1].version),
            repeat_terminated=check_repeat_guard(
                self._decode.repeat, output.prompt_token_ids, answer.token_ids, self._codec
            ),
        )

    def load_weights(self, manifest: WeightsManifest, buckets: Sequence[Bucket]) -> LoadReport:
        started = time.monotonic()
        self._wake()
        received = self._load(manifest, buckets)
        self._engine.set_weight_version(str(manifest.version))
        loaded = time.monotonic()
        vllm_weights.drop_caches(self._engine, manifest.version, self.num_unfinished)
        return LoadReport(
            version=self.version,
            bucket_checksums=received,
            load_seconds=loaded - started,
            resume_seconds=time.monotonic() - loaded,
        )

    def _load(self, manifest: WeightsManifest, buckets: Sequence[Bucket]) -> tuple[str, ...]:
        """Digests of the bytes that were loaded."""
        if manifest.adapter is not None:
            received = load_adapter(self._engine, manifest, buckets)
            self._adapter = adapter_request()
        elif manifest.tensors:
            received = vllm_weights.load(self._engine, manifest, buckets)
        else:
            received = ()
        return received

    def weight_checksums(self) -> dict[str, str]:
        """vLLM's own digest of every tensor that it serves."""
        return vllm_weights.checksums(self._engine)

    def probe(self, request: RolloutRequest) -> Probe:
        """A greedy answer with the probabilities behind it. Nothing else may be running."""
        assert not self._requests, "a probe runs alone"
        params = self._params.clone()
        params.temperature, params.logprobs = 0.0, PROBED_TOKENS
        self._add(request, self.prepare(request), params)
        while not (finished := [output for output in self._engine.step() if output.finished]):
            pass
        answer = finished[0].outputs[0]
        logprobs = [
            sorted((entry.logprob for entry in position.values()), reverse=True)[:PROBED_TOKENS]
            for position in answer.logprobs
        ]
        return Probe(
            name=str(request.key),
            token_ids=np.asarray(answer.token_ids, dtype=np.int32),
            logprobs=np.asarray(logprobs, dtype=np.float32),
        )

    def sleep(self) -> None:
        assert not self._requests, "an engine sleeps between two windows"
        if not self._asleep:
            self._engine.sleep(level=1)  # weights to host memory: a partial publish needs the others to be there
            self._asleep = True

    def _wake(self) -> None:
        if self._asleep:
            self._engine.wake_up()
            self._asleep = False

    def abort_all(self) -> None:
        self._engine.abort_request(list(self._requests), internal=False)
        self._requests.clear()

    def close(self) -> None:
        if hasattr(self, "_engine"):
            self._engine.engine_core.shutdown()
            del self._engine
