"""What a run leaves behind, in the hands of programs that know nothing of it: plain transformers, vLLM and peft."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from actors.codec import ChatFrame, HubCodec
from actors.rollout_actor import load_processor
from actors.settings import ActorSettings
from actors.vllm_engine import VllmEngine
from learner.export import write_adapter, write_merged
from learner.merge import MergedWeights, Rounding
from learner.model import build_policy, trainable
from learner.publisher import Publisher
from learner.settings import TunerSettings
from protocol.config import load_config
from protocol.contracts import Record
from protocol.records import RecordFile
from protocol.weights import WeightsManifest
from tests.actors import engine_contract as contract
from tests.integration.conftest import ROOT
from tests.learner import tiny
from tests.learner.merging import Unpartitioned

pytestmark = pytest.mark.integration

START = ROOT / "deploy" / "demo" / "model"
NEW_TOKENS = 64
DORA = TunerSettings(kind="lora", use_dora=True, freeze_aligner=False)


@pytest.fixture(scope="module")
def actor(scenes: Path) -> ActorSettings:
    overrides = [f"model.model={START}", f"custom.train_jsonl={scenes / 'train.jsonl'}", "model.torch_dtype=float32"]
    overrides += ["custom.val_jsonl=null", "training.eval_steps=null", "custom.extra.rollout_matching.vllm.dtype=null"]
    settings = ActorSettings.from_config(load_config(ROOT / "configs" / "demo.yaml", overrides=overrides))
    decode = replace(contract.GREEDY, max_new_tokens=NEW_TOKENS)
    return replace(settings, decode=decode, engine=replace(settings.engine, dtype="float32"))


@pytest.fixture(scope="module")
def records(scenes: Path) -> list[Record]:
    return [record for record in RecordFile(scenes / "train.jsonl") if len(record.objects) > 2][:3]


@pytest.fixture(scope="module")
def published(actor: ActorSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """A folder with `merged` and `adapter` of a policy whose adapters have moved; its publish, manifest last."""
    policy = build_policy(tiny.settings(START, tuner=DORA, seed=5))
    torch.manual_seed(5)
    with torch.no_grad():
        for _, parameter in trainable(policy):
            parameter.add_(0.02 * torch.randn_like(parameter))
    weights = MergedWeights(policy, torch.float32)
    folder = tmp_path_factory.mktemp("exports")
    (folder / "merged").mkdir()
    named = weights.tensors(Unpartitioned(), Rounding(), only_changing=False)
    write_merged(folder / "merged", ((name, tensor) for name, tensor, _ in named), START)
    write_adapter(folder / "adapter", policy, Unpartitioned(), keep=True)
    publisher = Publisher(weights, Unpartitioned(), 2**20, is_first=True)
    return folder, list(publisher.publish(1, full=True))


@pytest.fixture(scope="module")
def rollouts(
    actor: ActorSettings, records: list[Record], published: tuple[Path, list[Any]]
) -> tuple[str, list[list[int]]]:
    """Greedy answers of a run's engine before and after it took the publish."""
    processor = load_processor(str(START))
    frame = ChatFrame(processor, actor.system_prompt, actor.user_prompt)
    engine = VllmEngine(actor.engine, actor.decode, frame, HubCodec(processor.tokenizer), processor)
    asked = contract.requests(records)
    before = contract.tokens(contract.answer(engine, asked))
    *buckets, manifest = published[1]
    assert isinstance(manifest, WeightsManifest)
    engine.load_weights(manifest, buckets)
    after = contract.tokens(contract.answer(engine, asked))
    engine.close()
    assert before != after, "or the comparisons could not fail"
    return frame.prompt_text, [after[request.key] for request in asked]


def open_all(records: list[Record]) -> list[Image.Image]:
    return [Image.open(record.images[0]).convert("RGB") for record in records]


def test_plain_transformers_gives_the_rollouts_of_the_runs_engine(
    records: list[Record], published: tuple[Path, list[Any]], rollouts: tuple[str, list[list[int]]]
) -> None:
    prompt, expected = rollouts
    model = AutoModelForImageTextToText.from_pretrained(published[0] / "merged")
    processor = AutoProcessor.from_pretrained(published[0] / "merged")
    for image, tokens in zip(open_all(records), expected, strict=True):
        inputs = processor(text=[prompt], images=[image], return_tensors="pt")
        answer = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
        assert answer[0, inputs["input_ids"].shape[1] :].tolist() == tokens


def test_plain_vllm_gives_the_rollouts_of_the_runs_engine(
    records: list[Record], published: tuple[Path, list[Any]], rollouts: tuple[str, list[list[int]]]
) -> None:
    from vllm import LLM, SamplingParams

    prompt, expected = rollouts
    limits = {"image": 1, "video": 0}
    merged = str(published[0] / "merged")
    # vLLM's own choice for a float32 checkpoint is a 16-bit dtype; the run's engine serves float32.
    llm = LLM(model=merged, dtype="float32", max_model_len=1024, limit_mm_per_prompt=limits, enforce_eager=True)
    asked = [{"prompt": prompt, "multi_modal_data": {"image": image}} for image in open_all(records)]
    answers = llm.generate(asked, SamplingParams(temperature=0, max_tokens=NEW_TOKENS), use_tqdm=False)
    assert [list(answer.outputs[0].token_ids) for answer in answers] == expected
    llm.llm_engine.engine_core.shutdown()


def test_plain_peft_loads_the_adapter_and_computes_what_the_merged_model_does(
    records: list[Record], published: tuple[Path, list[Any]], rollouts: tuple[str, list[list[int]]]
) -> None:
    base = AutoModelForImageTextToText.from_pretrained(START, dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(base, published[0] / "adapter")
    merged = AutoModelForImageTextToText.from_pretrained(published[0] / "merged")
    processor = AutoProcessor.from_pretrained(published[0] / "merged")
    inputs = processor(text=[rollouts[0]], images=open_all(records)[:1], return_tensors="pt")
    with torch.no_grad():
        logits = adapted(**inputs).logits
        torch.testing.assert_close(merged(**inputs).logits, logits, rtol=1e-5, atol=1e-5 * float(logits.abs().max()))
        with adapted.disable_adapter():
            assert not torch.allclose(adapted(**inputs).logits, logits, atol=1e-2)
