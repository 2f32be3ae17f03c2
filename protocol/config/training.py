"""`training`: batches, optimizer, schedule, packing, evaluation, checkpoints."""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import Field, model_validator

from protocol.config.base import (
    AnyCase,
    Fill,
    Names,
    NonEmpty,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Problem,
    Section,
    UnitFloat,
    YamlNo,
    require,
)

Scheduler = Literal["constant", "constant_with_warmup", "linear", "cosine", "cosine_with_min_lr"]
Moment = Annotated[float, Field(ge=0, lt=1)]


class SchedulerOptions(Section):
    """`lr_scheduler_kwargs` of the runbook."""

    min_lr: NonNegativeFloat | None = None
    """Same as `training.min_lr`."""


class TrainingConfig(Section):
    """How the learner trains. Defaults are the runbook's base values."""

    output_dir: NonEmpty = "runs"
    """Folder of all runs; a run writes to `<output_dir>/<run_name>`."""
    run_name: str | None = None
    """Name of the run's folder, below `output_dir`. Null: the run file's name without its suffix."""
    logging_dir: str | None = None
    """Folder of the TensorBoard files; `run_name` is appended. Null: the run's folder."""
    effective_batch_size: PositiveInt = 32
    """Raw rollouts per window, over all ranks and exactly: a window trains on this many, never more or fewer."""
    per_device_train_batch_size: PositiveInt = 1
    """Segments per forward pass and rank when packing is off; with packing a forward pass is one pack."""
    max_steps: Annotated[int, Field(ge=-1)] = -1
    """Optimizer steps of the run; -1: as many as `num_train_epochs` give. 0 only evaluates and exports."""
    num_train_epochs: PositiveFloat = 1.0
    """Passes over the training records when `max_steps` is -1."""
    learning_rate: NonNegativeFloat = 2e-5
    """Peak learning rate of the language model (and of every parameter without its own rate)."""
    vit_lr: NonNegativeFloat | None = None
    """Peak learning rate of the vision encoder. Null: `learning_rate`."""
    aligner_lr: NonNegativeFloat | None = None
    """Peak learning rate of the vision mergers. Null: `learning_rate`."""
    lr_scheduler_type: Annotated[Scheduler, AnyCase] = "cosine_with_min_lr"
    """Shape of the learning rate after warm-up (`constant` has none); only `cosine_with_min_lr` uses `min_lr`."""
    min_lr: NonNegativeFloat | None = None
    """Floor of `cosine_with_min_lr`. Null: 1e-6, or `learning_rate` where that is smaller."""
    lr_scheduler_kwargs: SchedulerOptions = SchedulerOptions()
    """The runbook's spelling of `min_lr`."""
    warmup_ratio: UnitFloat = 0.1
    """Share of the run's optimizer steps over which the learning rate rises from 0."""
    warmup_steps: NonNegativeInt = 0
    """Steps of warm-up; a positive number wins over `warmup_ratio`."""
    weight_decay: NonNegativeFloat = 0.1
    """Decoupled weight decay; norms and biases are exempt."""
    adam_beta1: Moment = 0.9
    """First moment's decay."""
    adam_beta2: Moment = 0.999
    """Second moment's decay."""
    adam_epsilon: PositiveFloat = 1e-8
    """Added to the root of the second moment."""
    max_grad_norm: NonNegativeFloat = 0.5
    """Gradients are scaled down to this norm; 0 does not clip."""
    max_skipped_steps: NonNegativeInt = 5
    """Optimizer steps in a row that may be skipped for a loss or gradient that is not finite; one more ends the run."""
    seed: NonNegativeInt = 17
    """Seed of everything that is drawn: order, sampling, dropout, initialisation of adapters."""
    bf16: bool | None = None
    """Compute in bfloat16. Null: follows `model.torch_dtype`; any other value must agree with it."""
    gradient_checkpointing: bool = True
    """Recompute activations in the backward pass: less memory, about a third more work."""
    loss_normalization: Literal["global", "micro_batch"] = "global"
    """`global` divides by the optimizer step's token counts over all ranks, so packing and sharding cannot change the
    gradient; `micro_batch` is the mean of per-pack means (the runbook's)."""
    packing: bool = False
    """Put several segments into one padding-free row."""
    packing_buffer: PositiveInt = 512
    """Accepted for runbook files; without effect: `buffer.max_segments` and `buffer.max_bytes` bound what waits."""
    packing_min_fill_ratio: Fill = 0.65
    """Packs filled below this share are counted (`packing/underfilled_packs`); with `packing_carry`, a last forward
    below it waits for the next window."""
    packing_carry: bool = False
    """Hold back the newest segments of a window where they alone would make an under-filled forward; they are trained
    with the next window. Needs `packing` and `rollout.max_staleness` of 1 or more. False trains each window whole."""
    packing_drop_last: bool = True
    """With `packing_carry`: true leaves what the last window holds back untrained (a resume rolls it out again), false
    trains the last window whole. Without, every window is whole."""
    packing_length: PositiveInt | None = None
    """Accepted for runbook files; without effect: a pack holds `global_max_length` tokens."""
    eval_packing: bool = False
    """Accepted for runbook files; without effect: evaluation generates, it does not pack."""
    dataloader_drop_last: bool = True
    """The run's last window, where `num_train_epochs` leave fewer records than it needs: true leaves these untrained,
    false fills it up from the next epoch. Every other window goes on from one epoch into the next."""
    eval_strategy: Annotated[Literal["no", "steps", "epoch"], AnyCase, YamlNo] = "steps"
    """When to evaluate during training. `steps` without `eval_steps` evaluates only before and after the run."""
    eval_steps: PositiveInt | None = None
    """Optimizer steps between two evaluations."""
    save_strategy: Annotated[Literal["no", "steps", "epoch"], AnyCase, YamlNo] = "steps"
    """When to write checkpoints. `steps` without `save_steps` writes only the last one."""
    save_steps: PositiveInt | None = None
    """Optimizer steps between two checkpoints."""
    save_total_limit: PositiveInt | None = None
    """Most checkpoints that are kept; the best and the newest always stay. Null: all."""
    save_delay_steps: NonNegativeInt = 0
    """No checkpoint before this optimizer step."""
    save_delay_epochs: NonNegativeFloat = 0.0
    """No checkpoint before this many epochs."""
    save_last_epoch: bool = True
    """Write a checkpoint at the end in any case."""
    metric_for_best_model: NonEmpty = "eval_rollout_f1"
    """Evaluation metric that selects the best checkpoint; an unknown name is refused at start. A share of matched pairs
    does not count where an evaluation matched nothing."""
    greater_is_better: bool = True
    """Whether a larger value of that metric is the better one."""
    logging_steps: PositiveInt = 1
    """Optimizer steps between two metric records: counters and `time/rollout_generate_s` add up over them, other gauges
    are the last step's. The last step, a step with a checkpoint and every evaluation are logged in any case."""
    logging_first_step: bool = True
    """Log the first step whatever `logging_steps` says."""
    report_to: Names = ("tensorboard",)
    """Besides JSONL: `tensorboard`, `wandb` (needs the wandb package), `none`."""
    resume: NonEmpty = "never"
    """`never` starts from the start checkpoint, `auto` continues from the newest complete checkpoint of the run's
    folder (before its first: from where it came from), anything else is the checkpoint folder to continue from."""

    @model_validator(mode="after")
    def _rules(self) -> TrainingConfig:
        require([*self._name_problems(), *self._schedule_problems(), *self._report_problems()])
        return self

    def _name_problems(self) -> list[Problem]:
        """A fresh start moves the run's folder aside: it must not be the folder of all runs, or lie outside it."""
        path = PurePath(self.run_name if self.run_name is not None else "run")
        if path.parts and not path.is_absolute() and ".." not in path.parts:
            return []
        message = f"must be the name of a folder below output_dir, got {self.run_name!r}; write letters and digits"
        return [Problem(("run_name",), message)]

    def _schedule_problems(self) -> list[Problem]:
        problems = []
        nested = self.lr_scheduler_kwargs.min_lr
        if nested is not None and self.min_lr is not None and nested != self.min_lr:
            message = f"is {self.min_lr} but lr_scheduler_kwargs.min_lr is {nested}; keep one of the two"
            problems.append(Problem(("min_lr", "lr_scheduler_kwargs.min_lr"), message))
        floor = self.min_lr if self.min_lr is not None else nested
        if floor is not None and floor > self.learning_rate:
            message = f"must not exceed learning_rate {self.learning_rate}, got {floor}; lower it"
            name = "min_lr" if self.min_lr is not None else "lr_scheduler_kwargs.min_lr"
            problems.append(Problem((name, "learning_rate"), message))
        return problems

    def _report_problems(self) -> list[Problem]:
        unknown = [name for name in self.report_to if name not in ("tensorboard", "wandb", "none")]
        message = (
            f"knows tensorboard, wandb and none, got {', '.join(unknown)}; remove the name: JSONL is always written"
        )
        return [Problem(("report_to",), message)] if unknown else []

    @property
    def lr_floor(self) -> float:
        """The learning rate at which `cosine_with_min_lr` ends."""
        given = self.min_lr if self.min_lr is not None else self.lr_scheduler_kwargs.min_lr
        return min(1e-6, self.learning_rate) if given is None else given
