"""Monitor dumps (SPEC 18): whole samples for people to read, and the first rollouts that the parser refused.

    runs/demo/monitor_dumps/step_000040.json      the payload
    runs/demo/monitor_dumps/step_000040.md        the same to read
    runs/demo/monitor_dumps/step_000040.html      pictures, and targets with their masks coloured
    runs/demo/monitor_dumps/step_000040_0.png     image, ground truth, predictions, matches and misses of sample 0

Everything here runs in the driver's writer thread: it replays recorded rollouts, so no pixel and no extra token leaves
an actor. An error is the writer's to count and log.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Any

from actors.codec import HubCodec
from deploy.dump_pages import as_html, as_markdown
from deploy.file_codec import load_codec
from deploy.overlay import draw_rollout
from deploy.recorder import RecordedRollout
from deploy.replay import replay_answer
from protocol.config import RunConfig
from protocol.contracts import GroundTruth, Shape
from protocol.parsing import caret
from protocol.prompts import resolve_prompts
from protocol.replay import Replay
from protocol.segments import SegmentStats
from protocol.serialization import assistant_text

log = logging.getLogger("rollmatch")
_FAILURE_CHARS = 600
_META = (
    "rollout_backend",
    "decode_mode",
    "max_new_tokens",
    "candidate_top_k",
    "maskiou_gate",
    "maskiou_resolution",
    "fp_cost",
    "fn_cost",
    "ot_cost",
    "ot_epsilon",
    "ot_iters",
)


class MonitorDumps:
    """Writes dumps into `RunConfig.monitor_dump_dir`."""

    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._settings = config.matching.monitor_dump
        self._dir = config.monitor_dump_dir

    @cached_property
    def _codec(self) -> HubCodec:
        """Loaded by the thread that writes, when the first dump is due."""
        return load_codec(self._config.model.model)

    def write(self, global_step: int, rollouts: Sequence[RecordedRollout], metrics: Mapping[str, float]) -> None:
        """The dump of a step: the first `max_samples` of its rollouts."""
        self._dir.mkdir(parents=True, exist_ok=True)
        chosen = rollouts[: self._settings.max_samples]
        seen = [self._replay(rollout) for rollout in chosen]
        payload = {
            "global_step": global_step,
            "epoch": metrics.get("train/epoch", float(chosen[0].trace.key.epoch)),
            "time": time.time(),
            "meta": self._meta(metrics),
            "samples": [self._sample(*pair) for pair in zip(seen, chosen, strict=True)],
        }
        base = self._dir / f"step_{global_step:06d}"
        base.with_suffix(".json").write_text(json.dumps(payload, indent=2) + "\n", encoding="ascii")
        if self._settings.write_markdown:
            base.with_suffix(".md").write_text(as_markdown(payload), encoding="utf-8")
        pictures = [f"{base.name}_{at}.png" for at in range(len(chosen))]
        for rollout, name in zip(chosen, pictures, strict=True):
            draw_rollout(rollout.trace, width=640).save(self._dir / name)
        base.with_suffix(".html").write_text(as_html(payload, seen, pictures), encoding="utf-8")

    def log_parse_failure(self, rollout: RecordedRollout) -> None:
        """A warning with the start of the answer and where each object was refused."""
        seen = self._replay(rollout)
        refused = "\n".join(caret(seen.parsed, reject, self._codec) for reject in seen.parsed.rejects)
        log.warning(
            "%s of %s: %d objects refused%s (debug_dump_parse_failures)\n%s\n%s",
            rollout.trace.key,
            rollout.actor,
            len(seen.parsed.rejects),
            ", truncated" if seen.parsed.truncated else "",
            clip(seen.text, _FAILURE_CHARS),
            clip(refused, 4 * _FAILURE_CHARS),
        )

    def _replay(self, rollout: RecordedRollout) -> Replay:
        return replay_answer(rollout.trace, self._config, self._codec)

    def _meta(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        matching = self._config.matching
        return {name: getattr(matching, name) for name in _META} | {
            "packing_enabled": self._config.training.packing,
            "rollout_buffer_enabled": matching.rollout_buffer.enabled,
            "rollout_buffer_m_steps": matching.m_steps,
            "rollout_generate_s": metrics.get("time/rollout_generate_s"),
            "rollout_tokens_per_s": metrics.get("rollout/gen_tokens_per_s"),
        }

    def _sample(self, seen: Replay, rollout: RecordedRollout) -> dict[str, Any]:
        record, parsed, most = seen.record, seen.parsed, self._settings.max_text_chars
        return {
            "sample_id": str(seen.key),
            "base_idx": record.index,
            "source": record.source,
            "image": record.images[0],
            "images": list(record.images),
            "width": record.width,
            "height": record.height,
            "actor": rollout.actor,
            "versions": [rollout.trace.first_version, rollout.trace.last_version],
            "messages": self._messages(record.images[0], record.objects),
            "rollout_text": clip(seen.text, most),
            "prefix_text": clip(parsed.prefix_text, most),
            "append_text": clip(seen.target.append_text, most),
            "train_text": clip(seen.target.train_text, most),
            "gt_objects": [{"index": t.index, "desc": t.desc} | _geometry(t.shape) for t in record.objects],
            "pred_objects": [
                {"key": p.key, "index": p.index, "desc": p.desc} | _geometry(p.shape) for p in parsed.predictions
            ],
            "rejects": [{"key": r.key, "reason": r.reason, "detail": r.detail} for r in parsed.rejects],
            "match": _match(seen),
            "stats": _stats(rollout.trace.stats),
        }

    def _messages(self, image: str, truths: Sequence[GroundTruth]) -> list[dict[str, Any]]:
        system, user = resolve_prompts(self._config)
        return [
            {"role": "system", "content": system},
            {"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": user}]},
            {"role": "assistant", "content": clip(assistant_text(truths), self._settings.max_text_chars)},
        ]


def clip(text: str, most: int) -> str:
    """The text, or its first `most` characters and how many are missing."""
    return text if len(text) <= most else f"{text[:most]}... [{len(text) - most} more characters]"


def _geometry(shape: Shape) -> dict[str, list[int]]:
    return {shape.geometry: [int(value) for value in shape.bins]}


def _match(seen: Replay) -> dict[str, Any]:
    predictions, truths = seen.parsed.predictions, seen.record.objects
    return {
        "matched_pairs": [[pair.prediction, pair.ground_truth] for pair in seen.match.pairs],
        "matched_pair_details": [
            {
                "pred_i": pair.prediction,
                "gt_i": pair.ground_truth,
                "mask_iou": pair.mask_iou,
                "pred_index": predictions[pair.prediction].index,
                "gt_index": truths[pair.ground_truth].index,
                "pred_desc": predictions[pair.prediction].desc,
                "gt_desc": truths[pair.ground_truth].desc,
            }
            for pair in seen.match.pairs
        ],
        "fn_gt_indices": list(seen.match.false_negatives),
        "fp_pred_indices": list(seen.match.false_positives),
        "gating_rejections": seen.match.gating_rejections,
    }


def _stats(stats: SegmentStats) -> dict[str, Any]:
    """All counters, and the rates of this sample; a match here is a supervised pair, as in the training metrics."""
    matched, predicted, truths = stats.matched_for_supervision, stats.valid_predictions, stats.gt_objects
    return asdict(stats) | {
        "valid_pred_objects": predicted,
        "fn_count": truths - matched,
        "precision": matched / predicted if predicted else 0.0,
        "recall": matched / truths if truths else 0.0,
        "f1": 2 * matched / (predicted + truths) if matched else 0.0,
        "matched_maskiou_mean": stats.matched_maskiou_sum / stats.matched_pairs if stats.matched_pairs else 0.0,
    }
