"""The group as the driver uses it: Ray actors, streaming publish, files, and how it ends."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import ray
import torch
from safetensors.torch import load_file
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from learner.group import LearnerGroup
from learner.settings import LearnerSettings, TunerSettings
from protocol.checksums import bucket_checksum
from protocol.errors import ConfigError, ContractError, DeadlineError, ImageError, LearnerError
from protocol.segments import Segment, SegmentRef
from protocol.shared_bytes import PIECE, SharedBytes
from tests.integration.learner_cases import SHARDED, unpack
from tests.learner import tiny

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("cluster")]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny"))


def settings(start: Path) -> LearnerSettings:
    tuner = TunerSettings(kind="lora", freeze_aligner=False, dropout=0.1)
    return tiny.settings(start, tuner=tuner, deepspeed={"zero_optimization": {"stage": 2}})


def started(start: Path, num_workers: int = 2) -> LearnerGroup:
    group = LearnerGroup(settings(start), num_workers, start_timeout_s=240, step_timeout_s=120)
    group.start()
    return group


def in_store(segments: list[Segment]) -> list[SegmentRef]:
    """In groups of two, as actors hand them over."""
    groups = [ray.put(tuple(segments[at : at + 2])) for at in range(0, len(segments), 2)]
    return [SegmentRef(groups[at // 2], at % 2) for at in range(len(segments))]


def test_an_array_that_travels_in_pieces_is_read_where_the_store_keeps_it() -> None:
    array = np.arange(5 * PIECE + 640, dtype=np.uint32).astype(np.uint8)
    ref = ray.put((SharedBytes.of(array), SharedBytes.of(array[: 2 * PIECE])))
    first, again = ray.get(ref), ray.get(ref)

    for sent, read, read_again in zip((array, array[: 2 * PIECE]), first, again, strict=True):
        assert np.array_equal(read, sent)
        assert read.ctypes.data == read_again.ctypes.data, "a copy would lie elsewhere each time"


def test_a_group_trains_publishes_saves_and_resumes(start: Path, segments: list[Segment], tmp_path: Path) -> None:
    refs = in_store(segments)
    group = started(start)
    first_manifest, _ = group.publish(0, full=True)
    assert (first_manifest.changed_tensors, len(first_manifest.tensors)) == (0, 69)
    result = group.train_step(SHARDED, refs)
    assert not result.skipped
    assert result.sums.ce_tokens == sum(int((segment.labels >= 0).sum()) for segment in segments)
    assert result.sums.coord_targets == 20
    sums = result.sums
    assert result.loss == pytest.approx(sums.ce_sum / sums.ce_tokens + sums.coord_sum / 20, rel=1e-6)
    assert result.num_tokens == sum(len(segment.input_ids) for segment in segments)
    assert len(result.busy_s) == 2

    manifest, buckets = group.publish(1, full=False)
    assert manifest.extra["optimizer_steps"] == 1
    assert 0 < manifest.changed_tensors <= len(manifest.tensors) < 69
    group.save_checkpoint(tmp_path / "checkpoint-1", {"pending": [1, 2]})
    continued = group.train_step(SHARDED, refs)
    group.close()

    # The driver owns the buckets: they outlive the ranks.
    arrays = ray.get(buckets)
    assert [bucket_checksum(bucket) for bucket in arrays] == list(manifest.bucket_checksums)
    published = unpack(manifest, arrays)
    check_export(tmp_path / "checkpoint-1" / "merged", start, published)
    check_adapter(tmp_path / "checkpoint-1" / "adapter", start)

    again = started(start)
    assert again.load_checkpoint(tmp_path / "checkpoint-1") == {"pending": [1, 2]}
    restored, _ = again.publish(1, full=True)
    assert restored.changed_tensors == 0
    resumed = again.train_step(SHARDED, refs)
    assert (resumed.loss, resumed.grad_norm) == (continued.loss, continued.grad_norm)
    again.close()

    own = settings(start)
    others = LearnerGroup(replace(own, tuner=replace(own.tuner, target_modules=("up_proj",))), 2, start_timeout_s=240)
    others.start()
    with pytest.raises(ConfigError, match=r"training\.resume: .*checkpoint-1 was written by a run that trained"):
        others.load_checkpoint(tmp_path / "checkpoint-1")


def check_export(folder: Path, start: Path, published: dict[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    """Plain transformers loads it, and it holds what was published."""
    on_disk = load_file(folder / "model.safetensors")
    assert on_disk.keys() == load_file(start / "model.safetensors").keys()
    assert all(np.array_equal(on_disk[name].numpy(), array) for name, array in published.items())
    model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype="auto")
    assert model.dtype == torch.float32
    processor = AutoProcessor.from_pretrained(folder)
    assert processor.tokenizer.get_vocab() == AutoProcessor.from_pretrained(start).tokenizer.get_vocab()


def check_adapter(folder: Path, start: Path) -> None:
    """Plain peft loads it, and its merge moves the weights."""
    base = Qwen3VLForConditionalGeneration.from_pretrained(start)
    before = {name: parameter.clone() for name, parameter in base.named_parameters()}
    merged = peft.PeftModel.from_pretrained(base, folder).merge_and_unload()
    assert any(not torch.equal(parameter, before[name]) for name, parameter in merged.named_parameters())


def test_one_ranks_failure_ends_the_step_and_the_group(start: Path, segments: list[Segment], tmp_path: Path) -> None:
    group = started(start)
    (tmp_path / "text.png").write_text("no image")
    broken = [*segments[:3], replace(segments[3], images=(str(tmp_path / "text.png"),))]
    began = time.monotonic()
    with pytest.raises(ImageError, match=r"learner rank 0 failed in train_step: record=3(?s:.*)File .*prompt_encoder"):
        group.train_step(SHARDED, in_store(broken))
    assert time.monotonic() - began < 30
    with pytest.raises(LearnerError, match="the learner group is closed"):
        group.train_step(SHARDED, in_store(segments))


def test_a_failure_within_one_ranks_forward_ends_the_step_while_the_others_wait(
    start: Path, segments: list[Segment]
) -> None:
    group = started(start)
    ids = segments[2].input_ids.copy()
    ids[-4] = 10**6  # no such token: the embedding raises, on rank 1 alone
    broken = replace(segments[2], input_ids=ids)
    began = time.monotonic()
    with pytest.raises(
        LearnerError, match=r"learner rank 1 failed in train_step: index out of range(?s:.*)File .*worker"
    ):
        group.train_step(SHARDED, in_store([*segments[:2], broken, segments[3]]))
    assert time.monotonic() - began < 30


def test_a_rank_that_dies_in_a_collective_does_not_hang_the_others(start: Path, segments: list[Segment]) -> None:
    group = started(start)
    refs = in_store(segments)
    fetch = group._fetch

    def fetch_and_lose_a_rank(shares: Any) -> set[ray.ObjectRef]:
        lost = fetch(shares)
        ray.kill(group._ranks[1], no_restart=True)
        return lost

    group._fetch = fetch_and_lose_a_rank  # type: ignore[method-assign]
    began = time.monotonic()
    with pytest.raises(LearnerError, match=r"learner rank 1 failed in train_step"):
        group.train_step(SHARDED, refs)
    assert time.monotonic() - began < 30


def test_a_start_that_cannot_work_says_why(start: Path, tmp_path: Path) -> None:
    other = tiny.write_checkpoint(tmp_path / "other")
    vocabulary = (other / "tokenizer.json").read_text().replace("<|coord_7|>", "<|coord_7777|>")
    (other / "tokenizer.json").write_text(vocabulary)
    with pytest.raises(LearnerError, match=r"learner rank 0 failed in start.*lacks 1 of 1000 coordinate tokens"):
        started(other, num_workers=1)


def test_a_cluster_without_room_is_named(start: Path) -> None:
    group = LearnerGroup(settings(start), 2, cpus_per_worker=8, start_timeout_s=1)
    with pytest.raises(DeadlineError, match=r"cluster\.num_learners: the cluster did not place 2 learner ranks"):
        group.start()


def test_a_plan_for_another_number_of_ranks_is_refused(start: Path) -> None:
    group = LearnerGroup(settings(start), 1)
    with pytest.raises(ContractError, match="has 2 packs for 1 learner ranks"):
        group.train_step(SHARDED, [])


def test_a_closed_group_may_be_closed_again(start: Path) -> None:
    group = LearnerGroup(settings(start), 1)
    group.close()
    group.close()
    with pytest.raises(ConfigError, match="is no complete checkpoint"):
        group.load_checkpoint(Path("/nowhere"))
