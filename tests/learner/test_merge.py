"""Merged weights: equal to the adapter's forward, named as on disk, computed without touching the model (SPEC A17)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from learner.collate import Batch, Vision, collate_packed
from learner.export import names_on_disk
from learner.merge import MergedWeights, Rounding
from learner.model import build_policy
from learner.publisher import Publisher
from learner.settings import TunerSettings
from protocol.checksums import bucket_checksum
from protocol.segments import Segment
from protocol.weights import WeightsManifest
from tests.integration.learner_cases import unpack
from tests.learner import tiny
from tests.learner.merging import DORA, LORA, TIED, WITH_MODULE, Unpartitioned, disturbed, exported, merged


@pytest.fixture(scope="module")
def packed(checkpoint: Path, segments: list[Segment], vision: list[Vision]) -> Batch:
    policy = build_policy(tiny.settings(checkpoint))
    return collate_packed(segments, vision, policy.rope_index)


@pytest.mark.parametrize("tuner", [LORA, DORA, WITH_MODULE, TIED], ids=["lora", "dora", "modules_to_save", "tied"])
def test_merged_forward_equals_adapter_forward(
    checkpoint: Path, tmp_path: Path, packed: Batch, tuner: TunerSettings
) -> None:
    policy = disturbed(tiny.settings(checkpoint, tuner=tuner))
    start = build_policy(tiny.settings(checkpoint))
    plain = build_policy(tiny.settings(exported(policy, checkpoint, tmp_path / "merged")))
    with torch.no_grad():
        adapted = policy.hidden(packed)
        torch.testing.assert_close(plain.hidden(packed), adapted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(plain.head.weight, policy.head.weight)
        assert not torch.allclose(start.hidden(packed), adapted, atol=1e-2)


@pytest.mark.parametrize(
    "tuner", [LORA, DORA, WITH_MODULE, TIED, tiny.FULL], ids=["lora", "dora", "modules", "tied", "full"]
)
def test_names_and_untrained_weights_are_those_on_disk(checkpoint: Path, tuner: TunerSettings) -> None:
    weights = merged(build_policy(tiny.settings(checkpoint, tuner=tuner)))
    on_disk = load_file(checkpoint / "model.safetensors")
    assert weights.keys() == on_disk.keys()
    for name, tensor in on_disk.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("tuner", [LORA, TIED, tiny.FULL], ids=["lora", "tied", "full"])
def test_the_names_that_a_start_is_checked_with_are_those_that_are_published(
    checkpoint: Path, tuner: TunerSettings
) -> None:
    policy = build_policy(tiny.settings(checkpoint, tuner=tuner))
    assert MergedWeights(policy, torch.float32).names() == [*merged(policy)]


@pytest.mark.parametrize("tuner", [LORA, DORA], ids=["lora", "dora"])
def test_merging_leaves_the_model_alone(checkpoint: Path, tuner: TunerSettings) -> None:
    policy = disturbed(tiny.settings(checkpoint, tuner=tuner))
    before = {name: parameter.clone() for name, parameter in policy.named_parameters()}
    assert all(torch.equal(one, two) for one, two in zip(merged(policy).values(), merged(policy).values(), strict=True))
    assert all(torch.equal(before[name], parameter) for name, parameter in policy.named_parameters())


def test_no_more_than_one_module_is_whole_at_a_time(checkpoint: Path) -> None:
    alive: list[int] = []
    largest: list[int] = []

    class Watched(Unpartitioned):
        @contextlib.contextmanager
        def gathered(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
            assert not alive, "a consumer that waits must not keep a module whole"
            alive.append(sum(parameter.numel() for parameter in parameters))
            largest.extend(alive)
            yield
            alive.pop()

    policy = build_policy(tiny.settings(checkpoint, tuner=LORA))
    for _ in MergedWeights(policy, torch.float32).tensors(Watched(), Rounding(), only_changing=False):
        assert not alive
    assert max(largest) == policy.core.get_input_embeddings().weight.numel()


def test_an_untied_head_is_published_under_its_own_name(tmp_path: Path) -> None:
    start = tiny.write_checkpoint(tmp_path / "untied", tied=False)
    assert "lm_head.weight" in merged(build_policy(tiny.settings(start)))


def test_rounding_reports_what_the_serving_dtype_swallows(checkpoint: Path) -> None:
    settings = tiny.settings(checkpoint, tuner=LORA)
    reports = []
    for scale in (1e-5, 1.0):
        rounding = Rounding()
        weights = MergedWeights(disturbed(settings, scale), torch.bfloat16)
        tensors = list(weights.tensors(Unpartitioned(), rounding, only_changing=True))
        assert {tensor.dtype for _, tensor, _ in tensors} == {torch.bfloat16}
        reports.append(rounding.lost / rounding.updated)
    assert reports[0] > 0.5
    assert reports[1] < 0.1


def test_a_publish_reports_lost_updates_only_where_adapters_moved_something(checkpoint: Path) -> None:
    shares = []
    for scale in (0.0, 1e-5):
        weights = MergedWeights(disturbed(tiny.settings(checkpoint, tuner=LORA), scale), torch.bfloat16)
        *_, manifest = Publisher(weights, Unpartitioned(), 10**6, is_first=True).publish(1, full=False)
        assert isinstance(manifest, WeightsManifest)
        shares.append(manifest.extra.get("rounding_lost_share"))
    assert shares[0] is None
    assert shares[1] is not None
    assert 0.5 < shares[1] < 1


def publish(publisher: Publisher, version: int, full: bool) -> tuple[WeightsManifest, dict[str, Tensor]]:
    *buckets, manifest = publisher.publish(version, full)
    assert isinstance(manifest, WeightsManifest)
    assert [bucket_checksum(bucket) for bucket in buckets] == list(manifest.bucket_checksums)
    arrays = unpack(manifest, buckets)
    return manifest, {name: torch.from_numpy(array) for name, array in arrays.items()}


def test_a_partial_publish_sends_the_layers_that_can_change_and_counts_what_did(checkpoint: Path) -> None:
    policy = build_policy(tiny.settings(checkpoint, tuner=LORA))
    publisher = Publisher(MergedWeights(policy, torch.float32), Unpartitioned(), 50_000, is_first=True)
    publisher.remember()
    first, everything = publish(publisher, 0, full=True)
    assert (first.changed_tensors, first.full) == (0, True)
    assert {name for name in everything} == names_on_disk(checkpoint)
    adapter = next(p for name, p in policy.named_parameters() if "layers.1.mlp.down_proj.lora_B" in name)
    with torch.no_grad():
        adapter.add_(1.0)
    second, sent = publish(publisher, 1, full=False)
    assert second.changed_tensors == 1
    assert "model.language_model.layers.1.mlp.down_proj.weight" in sent
    assert "model.language_model.embed_tokens.weight" not in sent, "nothing trains it"
    assert publish(publisher, 2, full=False)[0].changed_tensors == 0


def test_a_fused_layer_is_sent_whole_when_one_of_its_parts_can_change(checkpoint: Path) -> None:
    tuner = TunerSettings(kind="lora", rank=2, target_modules=("language_model.layers.0.self_attn.q_proj",))
    publisher = Publisher(
        MergedWeights(build_policy(tiny.settings(checkpoint, tuner=tuner)), torch.float32),
        Unpartitioned(),
        50_000,
        is_first=True,
    )
    publisher.remember()
    publish(publisher, 0, full=True)
    _, sent = publish(publisher, 1, full=False)

    layer = "model.language_model.layers.0.self_attn"
    assert set(sent) == {f"{layer}.{part}_proj.weight" for part in "qkv"}


def test_buckets_are_no_larger_than_asked_and_hold_the_tensors_own_memory(checkpoint: Path) -> None:
    policy = build_policy(tiny.settings(checkpoint))
    publisher = Publisher(MergedWeights(policy, torch.float32), Unpartitioned(), 50_000, is_first=True)
    *buckets, manifest = publisher.publish(0, True)
    assert isinstance(manifest, WeightsManifest)
    for number, bucket in enumerate(buckets):
        assert not isinstance(bucket, WeightsManifest)
        assert sum(array.nbytes for array in bucket) <= 50_000 or len(bucket) == 1
        entries = [entry for entry in manifest.tensors if entry.bucket == number]
        assert [entry.num_bytes for entry in entries] == [array.nbytes for array in bucket]
        assert [entry.index for entry in entries] == list(range(len(bucket)))
        assert not any(array.flags.owndata for array in bucket), "the object store's copy is the only one"


def test_a_publish_tells_the_optimizer_steps_since_the_one_before_and_their_largest_rate(checkpoint: Path) -> None:
    """Either excuses one that changes nothing: every step of its window was skipped, or rounding hides them."""
    policy = build_policy(tiny.settings(checkpoint, tuner=LORA))
    publisher = Publisher(MergedWeights(policy, torch.float32), Unpartitioned(), 10**6, is_first=True)
    publisher.remember()
    told = []
    windows: list[tuple[list[float], bool]] = [
        ([], True),
        ([2e-5, 1e-5], False),
        ([], False),
        ([3e-6], True),
        ([], True),
    ]
    for rates, full in windows:
        for rate in rates:
            publisher.count_step(rate)
        extra = publish(publisher, len(told), full)[0].extra
        told.append((extra["optimizer_steps"], extra["largest_learning_rate"]))
    assert told == [(0, 0.0), (2, 2e-5), (0, 0.0), (1, 3e-6), (0, 0.0)]

    publisher.count_step(1e-5)
    publisher.remember()  # a restored state is no optimizer step's
    assert publish(publisher, 9, True)[0].extra["optimizer_steps"] == 0


def test_other_ranks_publish_nothing(checkpoint: Path) -> None:
    policy = build_policy(tiny.settings(checkpoint))
    publisher = Publisher(MergedWeights(policy, torch.float32), Unpartitioned(), 50_000, is_first=False)
    publisher.remember()
    assert list(publisher.publish(1, True)) == []
