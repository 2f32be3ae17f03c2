"""vLLM and transformers keep the contract of every engine, on the demo's checkpoint, and agree with each other; on a
GPU where there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from actors.codec import ChatFrame, HubCodec
from actors.engines import build_engine
from actors.rollout_actor import load_processor
from actors.settings import ActorSettings, DecodeSettings
from protocol.config import VllmConfig, load_config
from protocol.config.vllm import OWN_KEYS
from protocol.contracts import Completion, Record, RequestKey
from protocol.records import RecordFile
from protocol.weights import Bucket, WeightsManifest
from tests.actors import engine_contract as contract
from tests.integration.conftest import ON_GPU, ROOT

pytestmark = pytest.mark.integration

BACKENDS = ("hf", "vllm")
MODEL = ROOT / "deploy" / "demo" / "model"
ENGINE_ON_GPU = [
    "cluster.gpus_per_actor=1",
    *(f"custom.extra.rollout_matching.vllm.{each}" for each in ("enforce_eager=true", "gpu_memory_utilization=0.2")),
]
Build = Callable[..., contract.Subject]


@pytest.fixture(scope="module")
def build(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Build]:
    """Starts a backend with given decoding; closes all of them at the end."""
    config = load_config(
        ROOT / "configs" / "demo.yaml",
        overrides=[
            f"model.model={MODEL}",
            f"custom.train_jsonl={scenes / 'train.jsonl'}",
            "custom.val_jsonl=null",
            "training.eval_steps=null",
            "cluster.cpus_per_actor=1",
            *(ENGINE_ON_GPU if ON_GPU else []),
        ],
    )
    settings = ActorSettings.from_config(config)
    processor = load_processor(settings.engine.model)
    codec = HubCodec(processor.tokenizer)
    frame = ChatFrame(processor, settings.system_prompt, settings.user_prompt)
    folder = tmp_path_factory.mktemp("images")
    records = [record for record in RecordFile(scenes / "train.jsonl") if len(record.objects) > 2][:5]
    records[1:3] = [resized(records[1], folder, 160, 96), resized(records[2], folder, 96, 96)]
    large = folder / "large.png"
    Image.new("RGB", (1024, 1024)).save(large)
    started: list[Any] = []

    def start(backend: str, decode: DecodeSettings, **options: Any) -> contract.Subject:
        # One vLLM engine at a time in a process.
        while started:
            started.pop().close()
        engine = replace(settings.engine, backend=backend, watches_repeats=decode.repeat is not None)
        engine = replace(engine, options=engine.options | options)
        started.append(build_engine(replace(settings, engine=engine, decode=decode), frame, codec, processor))
        return contract.Subject(
            engine=started[-1],
            codec=codec,
            records=records,
            publish=publish,
            too_long=replace(records[0], source="large", images=(str(large),), width=1024, height=1024),
        )

    yield start
    while started:
        started.pop().close()


def resized(record: Record, folder: Path, width: int, height: int) -> Record:
    """The same scene in another size: prompts of different length, so that a batch needs padding."""
    path = folder / f"{record.index}.png"
    Image.open(record.images[0]).convert("RGB").resize((width, height)).save(path)
    return replace(record, images=(str(path),), width=width, height=height)


def publish(version: int) -> tuple[WeightsManifest, list[Bucket]]:
    """The checkpoint with noise on its language model, seeded by the version."""
    rng = np.random.default_rng(version)
    tensors = {}
    with safe_open(MODEL / "model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 (no mapping)
            value = file.get_tensor(name).float().numpy()
            noise = rng.normal(1, 0.05, value.shape) if "language_model" in name else 1
            tensors[name] = (value * noise).astype(np.float32)
    return contract.full_publish(version, tensors)


@pytest.fixture(scope="module")
def unwatched(build: Build) -> Callable[[str], dict[RequestKey, Completion]]:
    """Greedy answers of a backend, kept for the comparisons."""

    @cache
    def answers(backend: str) -> dict[RequestKey, Completion]:
        subject = build(backend, contract.GREEDY)
        return contract.answer(subject.engine, contract.requests(subject.records))

    return answers


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_greedy_engine_keeps_every_promise(backend: str, build: Build) -> None:
    subject = build(backend, contract.GREEDY)
    for promise in contract.PROMISES:
        promise(subject)


@pytest.mark.long
def test_a_compiled_engine_keeps_every_promise_and_gives_the_same_greedy_answers(build: Build) -> None:
    eager = build("vllm", contract.GREEDY)
    answers = contract.tokens(contract.answer(eager.engine, contract.requests(eager.records)))
    assert eager.engine._engine.model_config.enforce_eager, "as asked, or by default"  # type: ignore[attr-defined]
    compiled = build("vllm", contract.GREEDY, enforce_eager=False)
    assert not compiled.engine._engine.model_config.enforce_eager  # type: ignore[attr-defined]
    assert contract.tokens(contract.answer(compiled.engine, contract.requests(compiled.records))) == answers
    for promise in contract.PROMISES:
        promise(compiled)


def test_the_backends_give_the_same_prompts_and_greedy_answers(
    unwatched: Callable[[str], dict[RequestKey, Completion]],
) -> None:
    hf, vllm = (unwatched(backend) for backend in BACKENDS)
    assert len({len(completion.prompt_token_ids) for completion in hf.values()}) == 3, "or padding was not tested"
    assert contract.tokens(hf) == contract.tokens(vllm)
    for key, completion in hf.items():
        assert completion.prompt_token_ids.tolist() == vllm[key].prompt_token_ids.tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_sampling_engine_keeps_its_promises(backend: str, build: Build) -> None:
    subject = build(backend, contract.SAMPLED)
    for promise in contract.SAMPLING:
        promise(subject)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_repeat_guard_ends_answers_at_its_verdict(
    backend: str, build: Build, unwatched: Callable[[str], dict[RequestKey, Completion]]
) -> None:
    free = unwatched(backend)
    subject = build(backend, contract.WATCHED)
    contract.the_guard_ends_an_answer_right_after_the_verdict(subject, free)


def test_beams_are_watched_one_by_one_and_the_best_is_returned(build: Build) -> None:
    beams = replace(contract.GREEDY, mode="beam", num_beams=3, num_return_sequences=2, max_new_tokens=64)
    free = build("hf", beams)
    best = contract.answer(free.engine, contract.requests(free.records[:2]))
    watched = build("hf", replace(beams, repeat=contract.TWO_KEYS))
    ended = contract.answer(watched.engine, contract.requests(watched.records[:2]))
    assert contract.tokens(contract.answer(watched.engine, contract.requests(watched.records[:1]))).items() <= (
        contract.tokens(ended).items()
    )
    assert all(len(completion.token_ids) > 8 for completion in best.values())
    assert any(completion.repeat_terminated for completion in ended.values())


def test_a_repetition_penalty_does_not_count_padding(build: Build) -> None:
    subject = build("hf", replace(contract.GREEDY, repetition_penalty=1.3, max_new_tokens=48))
    whole = contract.tokens(contract.answer(subject.engine, contract.requests(subject.records)))
    for record in subject.records:
        alone = contract.tokens(contract.answer(subject.engine, contract.requests([record])))
        assert alone.items() <= whole.items()


def test_every_vllm_setting_is_an_engine_argument_of_the_installed_vllm() -> None:
    from vllm import EngineArgs

    known = {each.name for each in fields(EngineArgs)}
    skipped = OWN_KEYS | {"enable_lora"}  # read by us; its own test
    assert {name for name in VllmConfig.model_fields if name not in skipped} <= known
