"""Counters that add up, and the names they get (SPEC 15-17, A12, A20).

Every process returns sums; only here do sums become rates, so a rate over ranks, actors or micro-batches is the rate of
the whole. The table of names is in `metric_table`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter

from .event_metrics import percentile, rate
from .segments import SegmentStats

_SUMMED = tuple(each.name for each in fields(SegmentStats) if each.name != "decode_mode")
_NUMBERS = attrgetter(*_SUMMED)
_NO_COLUMNS: Mapping[str, tuple[int, ...]] = dict.fromkeys(_SUMMED, ())
_LENGTHS = ("prompt", "rollout", "train", "append", "encoded")


@dataclass(slots=True)
class RolloutTotals:
    """Sums of `SegmentStats` over segments; lengths are kept one by one for percentiles, five integers a segment."""

    num_segments: int = 0
    with_prediction: int = 0
    """Segments with at least one valid prediction."""
    with_supervised: int = 0
    """Segments with at least one supervised match."""
    with_pair: int = 0
    """Segments with at least one matched pair, supervised or not."""
    sums: dict[str, float] = field(default_factory=lambda: dict.fromkeys(_SUMMED, 0))
    """Sum of each numeric field of SegmentStats, under its name."""
    modes: Counter[str] = field(default_factory=Counter)
    """Segments per decode mode."""
    lengths: dict[str, list[int]] = field(default_factory=lambda: {name: [] for name in _LENGTHS})
    """[n] per kind of length, in the order of the segments."""

    @classmethod
    def of(cls, stats: Iterable[SegmentStats]) -> RolloutTotals:
        """Column by column: the driver does this for every segment."""
        rows = tuple(stats)
        columns = dict(zip(_SUMMED, zip(*map(_NUMBERS, rows), strict=True), strict=True)) if rows else _NO_COLUMNS
        appended = [train - prefix for train, prefix in zip(columns["train_len"], columns["prefix_len"], strict=True)]
        return cls(
            num_segments=len(rows),
            with_prediction=sum(number > 0 for number in columns["valid_predictions"]),
            with_supervised=sum(number > 0 for number in columns["matched_for_supervision"]),
            with_pair=sum(number > 0 for number in columns["matched_pairs"]),
            sums={name: sum(column) for name, column in columns.items()},
            modes=Counter(row.decode_mode for row in rows),
            lengths={name: appended if name == "append" else [*columns[f"{name}_len"]] for name in _LENGTHS},
        )

    def rollout_metrics(self, top_k: int, *, desc_enabled: bool = False) -> dict[str, float]:
        """`rollout/*` of one training event (SPEC 15, 16); a match here is a supervised pair.

        `top_k` is `candidate_top_k`, for the denominator of the gating rate. The desc keys are there when
        `desc_enabled`. Without segments every number is 0.
        """
        s, n = self.sums, self.num_segments
        matched, excluded = s["matched_for_supervision"], s["excluded_from_supervision"]
        dropped = s["parse_dropped_invalid"]
        counts = {
            "segments": n,
            "gt_objects": s["gt_objects"],
            "valid_pred_objects": s["valid_predictions"],
            "matched_for_supervision": matched,
            "excluded_from_supervision": excluded,
            "excluded_rate": rate(excluded, matched + excluded),
            "fn_appended": s["fn_appended"],
            "sample_valid_pred_rate": rate(self.with_prediction, n),
            "sample_any_match_rate": rate(self.with_supervised, n),
            "parse_dropped_invalid": dropped,
            "parse_dropped_ambiguous": 0,
            "parse_truncated": s["parse_truncated"],
            "parse_truncated_rate": rate(s["parse_truncated"], n),
            "parse_obj_total": s["valid_predictions"] + dropped,
            "parse_obj_valid_frac": rate(s["valid_predictions"], s["valid_predictions"] + dropped),
            "parse_obj_drop_frac": rate(dropped, s["valid_predictions"] + dropped),
            "gating_rejections": s["gating_rejections"],
            "gating_rejection_rate": rate(s["gating_rejections"], s["valid_predictions"] * max(1, top_k)),
            "matched_maskiou_mean": rate(s["matched_maskiou_sum"], s["matched_pairs"]),
            "matched_maskiou_count": s["matched_pairs"],
            "prefix_coord_targets_total": s["prefix_coord_targets"],
            "prefix_coord_targets_per_matched": rate(s["prefix_coord_targets"], matched),
            "tail_ignore_frac": rate(s["tail_ignored"], s["train_len"] - s["prefix_len"]),
            "cut_fallback": s["cut_fallback"],
            "duplicates": s["duplicates"],
            "duplicate_rate": rate(s["duplicates"], s["valid_predictions"]),
            "repeat_terminated": s["repeat_terminated"],
            "decode_greedy": self.modes["greedy"],
            "decode_beam": self.modes["beam"],
        }
        counts |= self._detection(matched) | self._per_sample(matched) | self._length_statistics()
        if desc_enabled:
            counts |= self._desc()
        return {f"rollout/{name}": float(value) for name, value in counts.items()}

    def evaluation_metrics(self, *, desc_enabled: bool = False) -> dict[str, float]:
        """`eval_rollout_*` of one evaluation (SPEC 17); a match here is a matched pair, supervised or not."""
        s, n = self.sums, self.num_segments
        detection = self._detection(s["matched_pairs"])
        counts = {name: detection[name] for name in ("precision", "recall", "f1", "fp", "fn")} | {
            "pred_objects": s["valid_predictions"],
            "gt_objects": s["gt_objects"],
            "matched": s["matched_pairs"],
            "gating_rejections": s["gating_rejections"],
            "parse_dropped_invalid": s["parse_dropped_invalid"],
            "parse_dropped_ambiguous": 0,
            "parse_truncated_rate": rate(s["parse_truncated"], n),
            "sample_valid_pred_rate": rate(self.with_prediction, n),
            "sample_any_match_rate": rate(self.with_pair, n),
            "matched_maskiou_mean": rate(s["matched_maskiou_sum"], s["matched_pairs"]),
            "duplicate_rate": rate(s["duplicates"], s["valid_predictions"]),
            "samples": n,
        }
        if desc_enabled:
            counts |= self._desc()
        return {f"eval_rollout_{name}": float(value) for name, value in counts.items()}

    def _detection(self, matched: float) -> dict[str, float]:
        predicted, truths = self.sums["valid_predictions"], self.sums["gt_objects"]
        precision, recall = rate(matched, predicted), rate(matched, truths)
        return {
            "precision": precision,
            "recall": recall,
            "match_rate": recall,
            "f1": rate(2 * precision * recall, precision + recall),
            "fp": max(0, predicted - matched),
            "fn": max(0, truths - matched),
        }

    def _per_sample(self, matched: float) -> dict[str, float]:
        detection, n = self._detection(matched), self.num_segments
        totals = {
            "gt": self.sums["gt_objects"],
            "pred": self.sums["valid_predictions"],
            "fp": detection["fp"],
            "fn": detection["fn"],
        }
        return {f"{name}_per_sample": rate(total, n) for name, total in totals.items()}

    def _length_statistics(self) -> dict[str, float]:
        found = {"prefix_len_mean": rate(self.sums["prefix_len"], self.num_segments)}
        for name, values in self.lengths.items():
            found[f"{name}_len_mean"] = rate(sum(values), len(values))
            found[f"{name}_len_p90"] = percentile(values, 90)
        return found

    def _desc(self) -> dict[str, float]:
        """Semantics count only when every segment's process had the encoder."""
        s, pairs = self.sums, self.sums["desc_pairs_total"]
        semantic = self.num_segments > 0 and s["desc_sem_segments"] == self.num_segments
        found: dict[str, float] = {
            "desc_pairs_total": pairs,
            "desc_exact_acc_on_matched": rate(s["desc_exact_ok"], pairs, empty=1.0),
            "desc_sem_enabled": float(semantic),
        }
        if semantic:
            found["desc_sem_acc_on_matched"] = rate(s["desc_sem_ok"], pairs, empty=1.0)
            found["desc_sem_sim_mean"] = rate(s["desc_sem_sim_sum"], s["desc_sem_sim_count"])
            found["desc_sem_sim_count"] = s["desc_sem_sim_count"]
        return found
