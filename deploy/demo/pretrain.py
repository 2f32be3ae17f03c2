"""Trains the demo's start checkpoint from nothing, in two stages.

1. *complete*: drawn scenes with all their objects, plain cross-entropy on the answer and its end-of-turn token.
2. *incomplete*: part of each scene's objects is left out of the answer, as in an incompletely annotated data set. The
   model keeps its boxes and stops early: low recall, which is what rollout matching then recovers.

`python -m deploy.demo.pretrain OUT` repeats it (about an hour on 2 cores) and writes `training_log.jsonl` beside the
weights. The committed model is the result of the defaults below.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

from deploy.demo.build_model import build
from deploy.demo.scenes import DrawnObject, Scene, draw_scene
from deploy.demo.text import SYSTEM_PROMPT, USER_PROMPT, answer_text

TRAIN_SEED = 1_000
"""Data set of the pre-training; demo training and evaluation draw from other seeds."""
BATCH = 32
POOL = 4
"""Batches drawn together and cut by length, so that little is padded."""


class Encoder:
    """Scenes → padded tensors. The prompt is the same for every scene, so it is tokenised once."""

    def __init__(self, folder: Path) -> None:
        self.processor = AutoProcessor.from_pretrained(folder)
        image = draw_scene(TRAIN_SEED, 0).image
        messages = [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": USER_PROMPT}]},
        ]
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        self.prompt = self.processor(text=[text], images=[image])["input_ids"][0]
        self.end = self.processor.tokenizer.encode("<|im_end|>")

    def answer_ids(self, objects: tuple[DrawnObject, ...]) -> list[int]:
        return [*self.processor.tokenizer.encode(answer_text(objects)), *self.end]

    def batch(self, rows: list[tuple[Scene, list[int]]]) -> dict[str, torch.Tensor]:
        """input_ids, labels [B, T], attention_mask, pixel_values, image_grid_thw, mm_token_type_ids."""
        width = len(self.prompt) + max(len(ids) for _, ids in rows)
        input_ids = torch.zeros(len(rows), width, dtype=torch.long)
        labels = torch.full_like(input_ids, -100)
        mask = torch.zeros_like(input_ids)
        for row, (_, ids) in enumerate(rows):
            full = torch.tensor(self.prompt + ids)
            input_ids[row, : len(full)] = full
            labels[row, len(self.prompt) : len(full)] = full[len(self.prompt) :]
            mask[row, : len(full)] = 1
        pixels = self.processor.image_processor(images=[scene.image for scene, _ in rows], return_tensors="pt")
        image_id = self.processor.image_token_id
        return {
            "input_ids": input_ids,
            "labels": labels,
            "attention_mask": mask,
            "mm_token_type_ids": (input_ids == image_id).long(),
            **pixels,
        }


def batches(encoder: Encoder, steps: int, first: int, keep: float, seed: int) -> Iterator[dict[str, torch.Tensor]]:
    """`steps` batches of scenes `first`, `first + 1`, ...; each object stays with probability `keep`."""
    rng = np.random.default_rng(seed)
    index = first
    for _ in range(0, steps, POOL):
        pool = []
        for _ in range(BATCH * POOL):
            scene = draw_scene(TRAIN_SEED, index)
            index += 1
            kept = tuple(o for o in scene.objects if rng.random() < keep) or scene.objects[:1]
            pool.append((scene, encoder.answer_ids(kept)))
        pool.sort(key=lambda row: len(row[1]))
        for start in rng.permutation(POOL) * BATCH:
            yield encoder.batch(pool[start : start + BATCH])


def train(
    model: Qwen3VLForConditionalGeneration,
    encoder: Encoder,
    *,
    steps: int,
    peak_lr: float,
    keep: float,
    first: int,
    log: Path,
    stage: str,
    stop: int | None = None,
) -> None:
    """One stage: AdamW, linear warm-up, linear decay over `steps`; leaves at `stop` where that is earlier."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=peak_lr,
        betas=(0.9, 0.98),
    )
    warmup = max(1, min(100, steps // 5))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, max(0.02, (steps - step) / (steps - warmup)))
    )
    started = time.monotonic()
    for step, batch in enumerate(batches(encoder, stop or steps, first, keep, seed=first), start=1):
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 20 == 0 or step == steps:
            seconds = round(time.monotonic() - started, 1)
            line = {"stage": stage, "step": step, "loss": round(loss.item(), 4), "s": seconds}
            with log.open("a") as lines:
                lines.write(json.dumps(line) + "\n")
            print(line, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the finished checkpoint")
    parser.add_argument("--steps", type=int, default=2000, help="steps that the complete stage's decay is planned for")
    parser.add_argument("--stop", type=int, default=1400, help="step at which the complete stage ends")
    parser.add_argument("--incomplete_steps", type=int, default=120, help="steps of the incomplete stage")
    parser.add_argument("--keep", type=float, default=0.5, help="share of objects that stay in the incomplete stage")
    parser.add_argument("--start", type=Path, help="a checkpoint to go on from: skips the complete stage")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / "fresh"
        build(fresh)
        encoder = Encoder(fresh)
        out = arguments.out
        shutil.copytree(fresh, out, dirs_exist_ok=True)
        log = out / "training_log.jsonl"
        model = Qwen3VLForConditionalGeneration.from_pretrained(
            arguments.start or fresh, dtype=torch.float32, use_safetensors=True
        )
        model.train()
        if arguments.start is None:
            log.write_text("")
            train(
                model,
                encoder,
                steps=arguments.steps,
                stop=arguments.stop,
                peak_lr=1.5e-3,
                keep=1.0,
                first=0,
                log=log,
                stage="complete",
            )
            model.save_pretrained(out / "complete")
        else:
            shutil.copy(arguments.start.parent / "training_log.jsonl", log)
        first = 10_000_000
        train(
            model,
            encoder,
            steps=arguments.incomplete_steps,
            peak_lr=5e-4,
            keep=arguments.keep,
            first=first,
            log=log,
            stage="incomplete",
        )
        model.to(torch.bfloat16).save_pretrained(out)


if __name__ == "__main__":
    main()
