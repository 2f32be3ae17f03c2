"""One learner rank: a plain class, so that tests run it without Ray; `learner.group` gives it a process.

An optimizer step, on every rank at once:

    agree on denominators ─► per micro-batch: wait for its pixels, check prompts, collate, agree that nobody failed,
    forward, backward ─► clip, step ─► sums and counts

Threads read the next micro-batches' pixels while one is trained. Nothing that can fail for one rank alone stands
between two collectives without an agreement before it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from learner.adapter_weights import AdapterWeights
from learner.checkpoint import check_signature
from learner.collate import Batch, Vision, collate_nothing, collate_packed, collate_padded
from learner.deepspeed_engine import TrainEngine, join
from learner.export import check_names, start_folder, write_adapter, write_merged
from learner.losses import LossSums, StepCounts, make_sums, scales
from learner.merge import MergedWeights, Rounding, exact_magnitudes
from learner.model import HeadOutput, build_policy, signature
from learner.nccl_sender import NcclSender
from learner.prompt_encoder import PromptEncoder
from learner.publisher import Publisher
from learner.randomness import random_state, seed_all, set_random_state
from learner.residence import Residence
from learner.results import PeerError, RankStep, Seconds
from learner.schedule import learning_rate
from learner.settings import LearnerSettings
from protocol.contracts import RequestKey
from protocol.segments import IGNORE_INDEX, Segment
from protocol.weights import Bucket, SyncGroup, WeightsManifest


class LearnerWorker:
    """Model, engine and schedule of one rank; the process group's environment must be set before."""

    def __init__(self, settings: LearnerSettings) -> None:
        start = start_folder(settings.model)
        settings = replace(settings, model=str(start))
        join(settings)
        self._settings = settings
        self._policy = build_policy(settings)
        self._signature = signature(self._policy, settings)
        self._weights = MergedWeights(self._policy, getattr(torch, settings.torch_dtype))
        check_names(self._weights.names(), start, tied={"lm_head.weight"})
        self._engine = TrainEngine(self._policy, settings)
        for magnitudes, norms in exact_magnitudes(self._weights.units, self._engine):
            self._engine.set_full_precision(magnitudes, norms)
        self._sender = NcclSender()
        self._residence = Residence(self._engine, settings.offload)
        self._encoder = PromptEncoder(settings)
        served = AdapterWeights(self._policy, self._weights.dtype) if settings.publishes_adapter else self._weights
        self._publisher = Publisher(served, self._engine, settings.bucket_bytes, is_first=self._engine.rank == 0)
        self._publisher.remember(start)
        self.step = 0
        """Optimizer steps of the run so far, skipped ones included."""
        seed_all(settings.seed + self._engine.rank)

    def train_step(self, micro_batches: Sequence[Sequence[Segment]], fetch_s: float = 0.0) -> RankStep:
        """One optimizer step on this rank's packs; an empty pack takes part without adding anything.

        Args:
            micro_batches: segments of each pack; the same number of packs on every rank.
            fetch_s: time the caller spent on getting the segments.

        Raises:
            PromptMismatchError, ImageError, LearnerError: from the encoder, on the rank it happened, before its
                micro-batch's forward; PeerError on the others. No parameter has moved.
        """
        self._residence.enter()
        segments = [segment for pack in micro_batches for segment in pack]
        self._encoder.prefetch(segments)
        counts = self._count(segments, sum(1 for pack in micro_batches if pack))
        sums, loss, seconds = LossSums(), 0.0, Seconds(fetch=fetch_s)
        broken: list[RequestKey] = []
        for number, pack in enumerate(micro_batches):
            batch, waited = self._prepare(pack)
            part, share, spent = self._forward_backward(batch, counts, last=number == len(micro_batches) - 1)
            sums, loss, seconds = sums + part, loss + share, seconds + waited + spent
            if not math.isfinite(share):
                broken.extend(batch.keys)
        return self._finish(sums, loss, seconds, segments, tuple(broken))

    def publish(
        self, version: int, full: bool, group: SyncGroup | None = None
    ) -> Iterator[Bucket | WeightsManifest | str]:
        """See `Publisher.publish`: buckets and then the manifest on rank 0, nothing elsewhere. Collective.

        With a `group` the buckets are broadcast after the manifest was taken; last comes why that failed, or "".
        """
        self._residence.enter()
        held: list[Bucket] = []
        for item in self._publisher.publish(version, full):
            if isinstance(item, WeightsManifest):
                self._residence.leave()  # before the driver can wake an engine on this device
                yield replace(item, group=group)
            elif group is None:
                yield item
            else:
                held.append(item)
        self._residence.leave()
        if held and group is not None:
            yield self._sender.send(group, held)

    def save_checkpoint(self, folder: Path) -> None:
        """This rank's part of a checkpoint. Collective."""
        with self._residence.visit():
            self._save(folder)

    def _save(self, folder: Path) -> None:
        self._engine.save(folder / "deepspeed")
        own = folder / "ranks" / f"{self._engine.rank}.pt"
        own.parent.mkdir(exist_ok=True)
        torch.save({"step": self.step, "random": random_state(), "trained": self._signature}, own)
        if self._policy.adapter is not None:
            write_adapter(folder / "adapter", self._policy, self._engine, keep=self._engine.rank == 0)
        self._engine.barrier()

    def load_checkpoint(self, folder: Path) -> None:
        """Puts this rank where `save_checkpoint` left it. Collective. ConfigError where that trained other tensors.

        A rank that has no file of its own (the run has more ranks than before) keeps its fresh random generators.
        """
        own = folder / "ranks" / f"{self._engine.rank}.pt"
        saved = torch.load(own if own.exists() else own.with_name("0.pt"), weights_only=False)
        check_signature(folder, saved["trained"], self._signature)
        self._residence.enter()
        self._engine.load(folder / "deepspeed", saved_by=len(list((folder / "ranks").glob("*.pt"))))
        self.step = saved["step"]
        if own.exists():
            set_random_state(saved["random"])
        self._publisher.remember()

    def export_merged(self, folder: Path) -> None:
        """Writes the merged model into `folder`. Collective; only rank 0 writes."""
        with self._residence.visit():
            self._export(folder)

    def _export(self, folder: Path) -> None:
        tensors = self._weights.tensors(self._engine, Rounding(), only_changing=False, keep=self._engine.rank == 0)
        named = ((name, tensor) for name, tensor, _ in tensors)
        if self._engine.rank == 0:
            write_merged(folder, named, Path(self._settings.model))
        else:
            assert not list(named), "only rank 0 holds merged tensors"
        self._engine.barrier()

    def _count(self, segments: Sequence[Segment], num_packs: int) -> StepCounts:
        """The denominators of the step over all ranks."""
        ce_tokens = sum(int((segment.labels != IGNORE_INDEX).sum()) for segment in segments)
        coord_targets = sum(len(segment.coord_bins) for segment in segments)
        totals = self._engine.total([ce_tokens, coord_targets, num_packs])
        return StepCounts(*(int(total) for total in totals))

    def _prepare(self, pack: Sequence[Segment]) -> tuple[Batch, Seconds]:
        """The micro-batch of a pack, once every rank has its own."""
        started = collated = time.monotonic()
        failure: Exception | None = None
        try:
            prompts = self._encoder.encode_all(pack)
            collated = time.monotonic()
            batch = self._collate(pack, [prompt.vision for prompt in prompts])
        except Exception as error:  # whatever it is, the other ranks must hear of it before this one leaves
            failure = error
        spent = Seconds(fetch=collated - started, mask_build=time.monotonic() - collated)
        (num_failed,) = self._engine.total([float(failure is not None)])
        if failure is not None:
            raise failure
        if num_failed:
            raise PeerError(f"{num_failed:.0f} other rank(s) could not prepare the step; read their errors")
        return batch, spent

    def _collate(self, pack: Sequence[Segment], vision: Sequence[Vision]) -> Batch:
        if not pack:
            return collate_nothing(*self._policy.smallest_input(), self._policy.rope_index)
        if self._settings.packing:
            return collate_packed(pack, vision, self._policy.rope_index, self._settings.max_length)
        return collate_padded(pack, vision, self._policy.rope_index)

    def _forward_backward(self, batch: Batch, counts: StepCounts, *, last: bool) -> tuple[LossSums, float, Seconds]:
        """Sums of one micro-batch and its share of the loss; its gradient is added to the engine's."""
        num_ce, num_coord = len(batch.ce_ids()), len(batch.coord_bins)
        world = self._engine.world_size
        factors = scales(self._settings.loss.normalization, counts, num_ce, num_coord, world)
        started = time.monotonic()
        output: HeadOutput = self._engine.forward(batch, factors)
        share = float(output.loss.detach()) / world
        middle = time.monotonic()
        # A loss that is not finite may still have finite gradients: make sure that the whole step is dropped.
        loss = output.loss if math.isfinite(share) else output.loss * math.nan
        self._engine.backward(loss, last=last)
        sums = make_sums(output.ce.sum(), num_ce, output.coord, batch.coord_in_prefix)
        return sums, share, Seconds(forward=middle - started, backward=time.monotonic() - middle)

    def _finish(
        self,
        sums: LossSums,
        loss: float,
        seconds: Seconds,
        segments: Sequence[Segment],
        broken: tuple[RequestKey, ...],
    ) -> RankStep:
        started = time.monotonic()
        schedule = self._settings.schedule
        rates = {name: learning_rate(peak, self.step, schedule) for name, peak in self._engine.peak_rates.items()}
        outcome = self._engine.step(list(rates.values()))
        self.step += 1
        if outcome.applied:
            self._publisher.count_step(max(rates.values()))
        return RankStep(
            sums=sums,
            loss=loss,
            num_tokens=sum(len(segment.input_ids) for segment in segments),
            seconds=seconds + Seconds(optimizer=time.monotonic() - started),
            grad_norm=outcome.grad_norm,
            learning_rate=_shown(rates),
            skipped=not outcome.applied,
            non_finite_keys=broken,
            skipped_keys=() if outcome.applied else tuple(segment.key for segment in segments),
        )


def _shown(rates: Mapping[str, float]) -> float:
    """The language model's rate where it is trained, else the first part's."""
    return next((rate for name, rate in rates.items() if name.startswith("language")), next(iter(rates.values())))
