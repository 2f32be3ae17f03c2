"""The folder of a run that never ran: what the report and the live view read, with known numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from deploy.environment import write_environment
from deploy.recorder import RecordedRollout, RolloutFile, append_evaluated
from protocol.config import load_config
from protocol.contracts import EVALUATION_EPOCH, GroundTruth, Shape
from protocol.serialization import assistant_text
from tests.deploy.rollouts import MODEL, ROOT, trace_of

CAT = GroundTruth(index=1, desc="red <circle>", shape=Shape("bbox_2d", (100, 100, 300, 300)))
DOG = GroundTruth(index=2, desc="blue bar", shape=Shape("bbox_2d", (500, 500, 700, 700)))
START = 1_760_000_000.0


def write_run(folder: Path, *, steps: int = 20, finished: bool = True, truncated: float = 0.0, **settings: Any) -> Path:
    """Windows of ten seconds: six of rollouts by two actors, three of training on two ranks, one of sync."""
    folder.mkdir(parents=True)
    overrides = [f"model.model={MODEL}", f"training.max_steps={steps}", f"training.run_name={folder.name}"]
    overrides += [f"{name.replace('__', '.')}={value}" for name, value in settings.items()]
    load_config(ROOT / "configs" / "demo.yaml", overrides=overrides).dump(folder / "config.yaml")
    write_environment(folder)
    rows = [{"step": 0, "time": START} | _evaluation(0.5, exact=0.44)]
    rows += [{"step": step, "time": START + 10 * step} | _step(step / steps, truncated) for step in range(1, steps + 1)]
    rows.append({"step": steps, "time": START + 10 * steps} | _evaluation(0.7, exact=0.40))
    _write_lines(folder / "metrics.jsonl", rows)
    _write_lines(folder / "events.jsonl", [event for step in range(steps) for event in _events(START + 10 * step)])
    keys = [{"keys": [f"record={8 * step + at}/epoch=0/rollout=0" for at in range(8)]} for step in range(steps)]
    _write_lines(folder / "ledger.jsonl", keys)
    _write_rollouts(folder, steps)
    if finished:
        summary = {"f1_before": 0.5, "f1_after": 0.7, "steps": steps, "rollouts": 8 * steps, "wall_s": 200.0}
        (folder / "summary.json").write_text(
            json.dumps(summary | {"restarts": 0, "learner_restarts": 0, "before": {}, "after": {}})
        )
    return folder


def _evaluation(f1: float, exact: float) -> dict[str, Any]:
    scores = dict.fromkeys(("eval_rollout_f1", "eval_rollout_precision", "eval_rollout_recall"), f1)
    return scores | {"eval_rollout_desc_pairs_total": 9.0, "eval_rollout_desc_exact_acc_on_matched": exact}


def _step(done: float, truncated: float) -> dict[str, Any]:
    return {
        "rollout/segments": 8.0,
        "rollout/f1": 0.5 + 0.2 * done,
        "rollout/precision": 0.8,
        "rollout/recall": 0.4 + 0.2 * done,
        "rollout/parse_truncated_rate": truncated if done > 0.5 else 0.0,
        "rollout/gt_per_sample": 2.0,
        "rollout/pred_per_sample": 2.0,
        "loss/total": 3.0 - done,
        "loss/ce": 1.0 - 0.5 * done,
        "packing/post_rollout_fill": 0.9,
        "rollout/rollouts_per_s": 0.8,
        "rollout/gen_tokens_per_s": 100.0,
        "rollout/actors_ready": 2.0,
        "policy/version": 3.0,
        "policy/staleness_max": 1.0,
        "buffer/segments": 8.0,
        "buffer/bytes": 4096.0,
        "time/step_s": 10.0,
        "time/wait_rollouts_s": 5.0,
        "time/train_step_s": "NaN" if done == 1 else 3.0,
    }


def _events(at: float) -> list[dict[str, Any]]:
    spans = [("driver", "rollout", 0, 6), ("driver", "train", 6, 9), ("driver", "sync", 9, 10)]
    spans += [("actor-0", "generate", 0, 6), ("actor-0", "parse", 5, 5.5), ("actor-1", "generate", 0, 4)]
    made: list[dict[str, Any]] = [
        {"time": at + 10, "kind": "span", "lane": lane, "name": name, "start": at + start, "end": at + end}
        for lane, name, start, end in spans
    ]
    step = {"time": at + 9, "kind": "optimizer_step", "seconds": 3.0, "busy_s": [3.0, 1.5]}
    engines = [{"name": "actor-0", "seconds": 0.25, "ended": at + 9.75}]
    publish = {"time": at + 10, "kind": "publish", "version": 1, "seconds": 1.0, "learner_s": 0.5, "engines": engines}
    return [*made, step, publish]


def _write_rollouts(folder: Path, steps: int) -> None:
    image = folder / "x.png"
    Image.new("RGB", (128, 128), "#335577").save(image)
    answers = [
        assistant_text([CAT, DOG]),
        assistant_text([CAT]),
        assistant_text([CAT])[:-1] + ', "object_2": {"desc": ""}}',
    ]
    rollouts = [
        RecordedRollout(
            step=at,
            time=START + at,
            actor=f"actor-{at % 2}",
            latency_s=1.0 + at / 10,
            encoded=trace_of(
                at, answers[at % 3], truths=(CAT, DOG), image=str(image if at else folder / "gone.png")
            ).encode(),
        )
        for at in range(12)
    ]
    RolloutFile(folder, 1 << 20).append(rollouts)
    for step, text in ((0, "{}"), (steps, answers[0])):
        traces = [
            trace_of(at, text, truths=(CAT, DOG), image=str(image), epoch=EVALUATION_EPOCH).encode() for at in range(5)
        ]
        append_evaluated(
            folder,
            [RecordedRollout(step=step, time=START, actor="actor-0", latency_s=1.0, encoded=each) for each in traces],
        )


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
