"""The rows of the metric table: every name with its unit, kind, meaning and alarm. `metric_table` is its door."""

from __future__ import annotations

from functools import partial

from .metric_series import Metric, add_rows

BY_NAME: dict[str, Metric] = {}
"""Metric by name, grouped by kind and unit."""

_add = partial(add_rows, BY_NAME)

_add(
    "counter",
    "1",
    {
        "rollout/segments": "Segments trained in this event; the n of the rates below.",
        "rollout/gt_objects": "Ground-truth objects.",
        "rollout/valid_pred_objects": "Strictly valid predicted objects.",
        "rollout/matched_for_supervision": "Matched pairs whose prefix slots are supervised.",
        "rollout/excluded_from_supervision": "Matched pairs without a target; their truth is appended instead.",
        "rollout/fn_appended": "Ground-truth objects appended to the targets.",
        "rollout/fp": "Predictions without a supervised match.",
        "rollout/fn": "Ground truth without a supervised match.",
        "rollout/parse_dropped_invalid": "Objects rejected by the strict parser.",
        "rollout/parse_dropped_ambiguous": "Always 0: the strict parser knows no ambiguity. Kept for old dashboards.",
        "rollout/parse_truncated": "Rollouts whose JSON was open at the end.",
        "rollout/parse_obj_total": "Valid plus rejected objects.",
        "rollout/gating_rejections": "Candidate pairs below the maskIoU gate.",
        "rollout/matched_maskiou_count": "Matched pairs, supervised or not.",
        "rollout/prefix_coord_targets_total": "Coordinate targets inside prefixes.",
        "rollout/cut_fallback": "Prefixes cut back to `{` because a cut token did not survive a round trip.",
        "rollout/duplicates": "Near-duplicate predictions within a sample (same desc, IoU >= 0.9).",
        "rollout/repeat_terminated": (
            "Rollouts that the repeat guard ended.",
            "Growing: answers degenerate; look at rollout/duplicate_rate and the dumps.",
        ),
        "rollout/decode_greedy": "Rollouts decoded greedily.",
        "rollout/decode_beam": "Rollouts decoded by beam search.",
        "rollout/gen_new_tokens_total": "Tokens generated for this event.",
        "rollout/oversize_dropped": (
            "Targets longer than global_max_length: not trained, quarantined.",
            "Above 0: raise global_max_length, or lower max_new_tokens.",
        ),
        "rollout/actor_restarts": ("Rollout actors restarted.", "Above 0: read the actor's log."),
        "train/skipped_steps": (
            "Optimizer steps skipped for a loss or gradient that is not finite.",
            "Above 0: lower the rate. max_skipped_steps in a row and one more end the run.",
        ),
        "train/restarts": ("Learner group restarts from a checkpoint.", "Above 0: read the failed rank's traceback."),
        "train/tokens": "Segment tokens trained, over all ranks.",
        "train/ce_tokens": "Cross-entropy targets of the step, over all ranks.",
        "train/coord_tokens": "Coordinate targets of the step, over all ranks.",
        "packing/underfilled_packs": "Packs below packing_min_fill_ratio, empty ones apart.",
        "packing/empty_packs": "Ranks without a pack in the last micro-batch.",
        "sync/changed_tensors": ("Tensors that the publish changed.", "0 after an optimizer step stops the run."),
        "dump/dropped": (
            "Dumps, recorded rollouts, and steps for TensorBoard or wandb, not written because the writer was behind.",
            "Above 0: a faster disk, or fewer dumps.",
        ),
        "dump/failed": (
            "The same, where the write failed.",
            "Above 0: read the driver's log.",
        ),
    },
)
_add(
    "gauge",
    "1",
    {
        "rollout/precision": ("Supervised matches / predictions.", "Falling while recall holds: duplicates, no stop."),
        "rollout/recall": ("Supervised matches / ground truth.", "Falling: truncation, or too few objects."),
        "rollout/match_rate": "The same as rollout/recall, under its older name.",
        "rollout/f1": ("Harmonic mean of precision and recall.", "Half of its best: stop, look at the dumps."),
        "rollout/gt_per_sample": "Ground-truth objects per segment.",
        "rollout/pred_per_sample": ("Valid predictions per segment.", "Above 1.5 x gt_per_sample: precision goes."),
        "rollout/fp_per_sample": "Unmatched predictions per segment.",
        "rollout/fn_per_sample": "Missed ground truth per segment.",
        "rollout/sample_valid_pred_rate": ("Share of segments with a valid prediction.", "Below 0.9: format is lost."),
        "rollout/sample_any_match_rate": "Share of segments with a supervised match.",
        "rollout/parse_truncated_rate": (
            "Share of rollouts whose JSON was open at the end.",
            "Above 0.05: raise max_new_tokens, or enable the repeat guard.",
        ),
        "rollout/parse_obj_valid_frac": "Valid objects / all objects.",
        "rollout/parse_obj_drop_frac": ("Rejected objects / all objects.", "Above 0.1: look at the reject reasons."),
        "rollout/gating_rejection_rate": "gating_rejections / (predictions x top_k).",
        "rollout/matched_maskiou_mean": "Mean maskIoU of matched pairs.",
        "rollout/excluded_rate": ("Excluded / (supervised + excluded) pairs.", "Above 0: a target builder failed."),
        "rollout/prefix_coord_targets_per_matched": "Coordinate targets per supervised match: 4 for boxes.",
        "rollout/tail_ignore_frac": "Share of appended tokens without loss (desc values).",
        "rollout/duplicate_rate": ("duplicates / valid predictions.", "Above 0.1: rollouts degenerate; check EOS."),
        "rollout/buffer_reuse": "1 when the step trained a window again (M-step); only where windows have several.",
        "rollout/buffer_window_step0": "Optimizer steps that were done when the window began.",
        "rollout/buffer_completed_steps": "Optimizer steps that the window had before this one.",
        "rollout/desc_pairs_total": "Matched pairs with a desc on both sides.",
        "rollout/desc_exact_acc_on_matched": "Share of those with the same normalised desc; 1 without pairs.",
        "rollout/desc_sem_enabled": "1 when every process had the encoder.",
        "rollout/desc_sem_acc_on_matched": "Share of those that are equal or similar enough; 1 without pairs.",
        "rollout/desc_sem_sim_mean": "Mean cosine similarity of descs.",
        "rollout/desc_sem_sim_count": "Pairs compared by the encoder.",
        "rollout/actors_ready": ("Rollout actors that take requests.", "Below the configured number: see the pool."),
        "rollout/running": "Requests without an answer.",
        "rollout/quarantined": (
            "Records set aside so far, whatever the reason.",
            "Growing: read the reasons in the quarantine file.",
        ),
        "loss/ce": "Cross-entropy per supervised tail token.",
        "loss/coord": "Coordinate loss per coordinate target.",
        "loss/coord_prefix": "The same over matched prefix slots.",
        "loss/coord_tail": "The same over the appended tail.",
        "loss/total": ("CE plus coordinate loss: what is minimised.", "Not finite: steps are skipped."),
        "train/grad_norm": ("Gradient norm before clipping.", "Far above max_grad_norm: lower the rate."),
        "train/learning_rate": "Learning rate of the language model, or of the first part that is trained.",
        "train/epoch": "Passes over the data set that were trained before this window.",
        "packing/post_rollout_fill": (
            "Tokens / (forwards x capacity), over all ranks.",
            "Below packing_min_fill_ratio: larger windows, fewer ranks or a smaller global_max_length.",
        ),
        "sync/rounding_lost_share": (
            "Share of the elements that adapters moved whose move is lost in the serving dtype; absent without.",
            "Near 1: engines serve the start weights; raise the rate, or serve float32.",
        ),
        "packing/post_rollout_segments": "Segments per pack.",
        "packing/post_rollout_buffer": "Segments carried to a later step.",
        "packing/micro_batches": "Forwards per rank in the step.",
        "packing/cost_imbalance": ("(Dearest - cheapest rank) / mean cost.", "Above 0.1: ranks wait for each other."),
        "policy/version": "Published version that the step trained on top of.",
        "policy/first_version_min": "Oldest version that wrote a first token of the step's segments.",
        "policy/last_version_max": "Newest version that wrote a last token of them.",
        "policy/staleness_max": ("version - first_version_min.", "At a bound above 1 all the time: learner is slower."),
        "buffer/segments": ("Segments in the buffer, leased ones included.", "At its bound: the learner is behind."),
        "buffer/taken": "Leased segments in the buffer.",
    },
)
_add(
    "gauge",
    "tokens",
    {
        f"rollout/{length}_len_{statistic}": f"{how} of {what}."
        for length, what in {
            "prompt": "prompt tokens, image tokens expanded",
            "rollout": "rollout tokens before the end of turn",
            "train": "prefix plus tail tokens, without end of turn",
            "append": "appended tokens",
            "encoded": "tokens of the whole segment",
        }.items()
        for statistic, how in {"mean": "Mean", "p90": "90th percentile"}.items()
    }
    | {
        "rollout/prefix_len_mean": "Mean of prefix tokens.",
        "rollout/gen_new_tokens_mean": "Mean of generated tokens per rollout.",
        "rollout/gen_new_tokens_p90": "90th percentile of them.",
        "rollout/gen_new_tokens_p99": "99th percentile of them; at max_new_tokens, rollouts are cut off.",
        "packing/post_rollout_selected_total_len": "Tokens per pack.",
    },
)
_add(
    "gauge",
    "tokens/s",
    {
        "rollout/gen_tokens_per_s": "Generated tokens per second of generation.",
        "train/tokens_per_s": "Segment tokens trained per second of training.",
    },
)
_add("gauge", "1/s", {"rollout/rollouts_per_s": ("Rollouts accepted per second of wall time.", "0: actors starve.")})
_add(
    "gauge",
    "seconds",
    {
        "time/step_s": "Wall time of the optimizer step with its waits and its publish, without evaluation and saving.",
        "time/rollout_generate_s": "Wall time of generation, summed over a record's steps; 0 when a window is reused.",
        "time/rollout_parse_match_s": "Parse and match, summed over rollouts.",
        "time/rollout_teacher_encode_s": "Building the teacher-forced segments, summed over rollouts.",
        "time/wait_rollouts_s": ("The learner waited for segments.", "Most of step_s: add actors or staleness."),
        "time/post_rollout_pack_s": "Planning the packs, with packing.",
        "time/fetch_s": "Ranks fetched their segments and images; the slowest rank.",
        "time/mask_build_s": "Collating rows and labels; the slowest rank.",
        "time/forward_s": "Forward passes; the slowest rank.",
        "time/backward_s": "Backward passes; the slowest rank.",
        "time/optimizer_s": "Optimizer step; the slowest rank.",
        "time/train_step_s": "Training part of the step, as the driver saw it.",
        "time/sync_s": "The loop waited for a publish: for merged weights, or for engines that load.",
        "time/evaluate_s": "One evaluation.",
        "time/checkpoint_s": "Writing one checkpoint.",
        "sync/merge_s": "Merging, rounding and hashing weights on learner rank 0.",
        "sync/put_s": "Writing the buckets into the object store.",
        "sync/fetch_s": "Getting the buckets; the slowest engine. With staleness, of the version before.",
        "sync/load_s": (
            "Checking and loading; the slowest engine. With staleness, of the version before.",
            "Rising: engine and learner share cores or memory.",
        ),
        "sync/resume_s": "From loaded to ready; the slowest engine. With staleness, of the version before.",
    },
)
_add(
    "gauge",
    "bytes",
    {
        "sync/bytes": "Size of the published buckets.",
        "buffer/bytes": ("Bytes of buffered segments.", "At its bound: the learner is behind."),
    },
)

_EVALUATION: dict[str, str | tuple[str, str]] = {
    "precision": "Matched / predicted, summed over all samples.",
    "recall": "Matched / ground truth.",
    "f1": ("Harmonic mean; the usual metric_for_best_model.", "Falls three times in a row: stop the run."),
    "pred_objects": "Valid predictions.",
    "gt_objects": "Ground-truth objects.",
    "matched": "Matched pairs.",
    "fp": "Predictions without a match.",
    "fn": "Ground truth without a match.",
    "gating_rejections": "Candidate pairs below the maskIoU gate.",
    "parse_dropped_invalid": "Objects rejected by the strict parser.",
    "parse_dropped_ambiguous": "Always 0, as in training.",
    "parse_truncated_rate": ("Share of rollouts with open JSON.", "Above 0.05: raise max_new_tokens."),
    "sample_valid_pred_rate": "Share of samples with a valid prediction.",
    "sample_any_match_rate": "Share of samples with a match.",
    "matched_maskiou_mean": "Mean maskIoU of matched pairs.",
    "duplicate_rate": ("Near-duplicates / valid predictions.", "Above 0.1: rollouts degenerate."),
    "samples": "Samples evaluated, each counted once.",
    "desc_pairs_total": "Matched pairs with a desc on both sides.",
    "desc_exact_acc_on_matched": "Share of those with the same normalised desc; 1 without pairs.",
    "desc_sem_enabled": "1 when every process had the encoder.",
    "desc_sem_acc_on_matched": "Share of those that are equal or similar enough; 1 without pairs.",
    "desc_sem_sim_mean": "Mean cosine similarity of descs.",
    "desc_sem_sim_count": "Pairs compared by the encoder.",
}
_add("gauge", "1", {f"eval_rollout_{name}": text for name, text in _EVALUATION.items()})
_add("gauge", "seconds", {"eval_runtime": "Wall time of the evaluation."})
_add(
    "gauge",
    "1/s",
    {
        "eval_samples_per_second": "Samples per second of the evaluation.",
        "eval_steps_per_second": "Request batches per second of the evaluation.",
    },
)
