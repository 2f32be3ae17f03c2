"""The training side: packs in, gradients, merged weights out.

    group ── one LearnerRank actor per rank ── worker ──┬─ prompt_encoder   the prompt once more, and its pixels
    (driver)  (ranks)                                   ├─ collate          segments → one padding-free row
    └─ waiting: the first failure wins                  ├─ model            Qwen3-VL, frozen parts, adapters
                                                        │    ├─ attention   one causal square per segment
                                                        │    └─ lm_head     logits at supervised rows, in chunks
                                                        │         └─ losses SPEC 12, as sums and counts
                                                        ├─ deepspeed_engine the one door to DeepSpeed
                                                        │    └─ deepspeed_json what users write as its JSON
                                                        ├─ merge, publisher merged weights → buckets and manifest
                                                        └─ checkpoint, export

Every method of a worker is collective: all ranks call it in the same order, and a rank without work takes part.
"""
