"""A monitor dump's payload as Markdown and as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from deploy.target_html import MASK_CSS, legend_html, target_html
from protocol.replay import Replay


def as_markdown(payload: Mapping[str, Any]) -> str:
    """Settings, then per sample the numbers, the matches and the texts."""
    lines = [f"# Step {payload['global_step']}", "", f"epoch {payload['epoch']:.2f}", ""]
    lines += [f"- {name}: {value}" for name, value in payload["meta"].items()]
    for sample in payload["samples"]:
        lines += ["", *_sample_markdown(sample)]
    return "\n".join(lines) + "\n"


def _sample_markdown(sample: Mapping[str, Any]) -> list[str]:
    match = sample["match"]
    found = [
        f"| {_cell(pair['pred_desc'])} | {_cell(pair['gt_desc'])} | {pair['mask_iou']:.3f} |"
        for pair in match["matched_pair_details"]
    ]
    missed = [sample["gt_objects"][at]["desc"] for at in match["fn_gt_indices"]]
    spurious = [sample["pred_objects"][at]["desc"] for at in match["fp_pred_indices"]]
    refused = [f"{item['key']}: {item['reason']}: {item['detail']}" for item in sample["rejects"]]
    lines = [
        f"## {sample['sample_id']}",
        "",
        f"{sample['source']}, {sample['image']}",
        "",
        headline(sample["stats"]),
        "",
    ]
    lines += ["| prediction | ground truth | maskIoU |", "|---|---|---|", *found, ""]
    for title, items in (("Missed", missed), ("Unmatched", spurious), ("Rejected", refused)):
        lines += [f"{title}: {', '.join(items) or 'nothing'}", ""]
    for title in ("rollout_text", "append_text", "train_text"):
        lines += [f"### {title}", "", "```", sample[title].replace("```", "'''"), "```", ""]
    return lines


def headline(stats: Mapping[str, Any]) -> str:
    """A sample in one line."""
    return (
        f"F1 {stats['f1']:.3f}: {stats['matched_for_supervision']} matches, {stats['valid_pred_objects']} predictions, "
        f"{stats['gt_objects']} objects, {stats['fn_appended']} appended, {stats['parse_dropped_invalid']} rejected"
        + (", truncated" if stats["parse_truncated"] else "")
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def as_html(payload: Mapping[str, Any], seen: Sequence[Replay], pictures: Sequence[str]) -> str:
    """A page that opens offline: it names only the pictures beside it."""
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>step {payload["global_step"]}</title>',
        f"<style>body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; }} {MASK_CSS}",
        "img { max-width: 640px; border: 1px solid #ddd; }</style>",
        f"<h1>Step {payload['global_step']}</h1>{legend_html()}",
    ]
    for sample, each, picture in zip(payload["samples"], seen, pictures, strict=True):
        parts += [
            f"<h2>{escape(sample['sample_id'])}</h2><p>{escape(sample['source'])} · {headline(sample['stats'])}</p>",
            f'<img src="{escape(picture)}" alt="image with ground truth and predictions">',
            target_html(each.tokens),
        ]
    return "\n".join(parts) + "</html>\n"
