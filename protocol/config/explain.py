"""Turns pydantic's errors into sentences: what is wrong, with got and expected; what to change."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from protocol.config.base import Problem, RuleError, Section

REMOVED = {
    "prompts": "prompts are set with custom.system_prompt and custom.user_prompt; remove the section",
    "custom.sample_limit": "was split; write custom.train_sample_limit and custom.val_sample_limit",
    "custom.summary_ratio": "summaries are not trained here; remove the key",
    "custom.coord_loss": "was replaced; write custom.coord_soft_ce_w1",
    "custom.coord_expectation_metrics": "coordinates are never decoded as expectations; remove the key",
    "custom.hard_sample_mining": "was removed; remove the section",
    "custom.images_per_user_turn": "a record has exactly one image; remove the key",
    "custom.augmentation": "images and boxes are trained as they are; augment the data set offline, remove the key",
    "data.lazy_tokenize": "a record is read when its turn comes; remove the key",
    "template.max_length": "is the length of a whole row; write global_max_length",
    "training.ddp_timeout": "belongs to the learner group; write cluster.step_timeout_s",
    "training.gradient_accumulation_steps": "follows from effective_batch_size and the packs; remove the key",
    "training.load_best_model_at_end": "best.json in the run's folder names the best checkpoint; remove the key",
    "training.optim": "the optimizer is AdamW; remove the key",
    "training.per_device_eval_batch_size": "evaluation runs on the rollout actors; remove the key",
    "training.resume_from_checkpoint": "was renamed; write training.resume: auto, or a checkpoint folder",
    "training.save_only_model": "a checkpoint holds what a resume needs, and merged/ is the model; remove the key",
}
"""Settings of the single-process trainer and of its libraries that have no namesake here."""
CALLED = {
    "model.checkpoint": "model.model",
    "model.model_name_or_path": "model.model",
    "model.name": "model.model",
    "model.path": "model.model",
    "training.batch_size": "training.effective_batch_size",
    "training.epochs": "training.num_train_epochs",
    "training.lr": "training.learning_rate",
    "training.num_epochs": "training.num_train_epochs",
}
"""Names that settings have elsewhere, and what they are called here: no spelling leads from one to the other."""
MOST_HOMES = 3
"""A name that more sections have, such as `enabled`, does not say where it belongs."""
EXPECTED = {
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "string_too_short": "text that is not empty",
    "tuple_type": "a list of names",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "none_required": "null",
}
BOUNDS = {
    "greater_than": ("gt", ">"),
    "greater_than_equal": ("ge", ">="),
    "less_than": ("lt", "<"),
    "less_than_equal": ("le", "<="),
}


def explain(error: ValidationError, section: type[Section]) -> list[Problem]:
    """What a validation found wrong, once per setting."""
    problems: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        for problem in _problems(detail, section):
            problems.setdefault(problem.path, problem)
    return list(problems.values())


def _problems(detail: ErrorDetails, section: type[Section]) -> Iterator[Problem]:
    keys = _real_keys(detail["loc"], section)
    path = ".".join(keys)
    rule = detail.get("ctx", {}).get("error")
    if isinstance(rule, RuleError):
        for problem in rule.problems:
            absolute = tuple(".".join((*keys, relative)) if keys else relative for relative in problem.paths)
            yield Problem(absolute, problem.message)
    elif detail["type"] == "extra_forbidden":
        yield Problem((path,), _unknown(path, keys, section))
    elif detail["type"] == "missing":
        yield Problem((path,), f"is required; set it ({_doc(keys, section)})")
    else:
        yield Problem((path,), f"must be {_expected(detail)}, got {_shown(detail['input'])}; {_advice(keys, section)}")


def _real_keys(location: Sequence[str | int], section: type[Section]) -> tuple[str, ...]:
    """Drops what pydantic adds for members of unions, and list positions, so that the path is the user's."""
    keys: list[str] = []
    model: type[Section] | None = section
    for part in location:
        if model is None:
            break  # below a plain value: union member names and list positions are not settings
        keys.append(str(part))
        field = model.model_fields.get(str(part))
        model = section_of(field.annotation) if field is not None else None
    return tuple(keys)


def section_of(annotation: Any) -> type[Section] | None:
    """The section that an annotation stands for, None for plain values."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return next(filter(None, map(section_of, typing.get_args(annotation))), None)
    return None


def parent_of(keys: Sequence[str], section: type[Section]) -> type[Section]:
    """The section that holds the last of `keys`."""
    model = section
    for key in keys[:-1]:
        field = model.model_fields.get(key)
        model = (section_of(field.annotation) if field is not None else None) or model
    return model


def _unknown(path: str, keys: Sequence[str], section: type[Section]) -> str:
    if path in REMOVED:
        return REMOVED[path]
    if path in CALLED:
        return f"is no known setting, it is called {CALLED[path]} here; rename it"
    homes = [known for known in all_paths(section) if known.rsplit(".", 1)[-1] == keys[-1]]
    placed = 0 < len(homes) <= MOST_HOMES
    siblings = parent_of(keys, section).model_fields
    # A name that exists was hardly misspelled, unless a single letter is missing.
    close = difflib.get_close_matches(keys[-1], siblings, n=1, cutoff=0.9 if placed else 0.6)
    if close:
        return f"is no known setting, the nearest is {'.'.join((*keys[:-1], close[0]))}; rename or remove it"
    if placed:
        return f"is no known setting here, it belongs to {' or '.join(homes)}; move it there"
    nearest = difflib.get_close_matches(path, all_paths(section), n=1, cutoff=0.0)
    return f"is no known setting, the nearest is {nearest[0]}; rename or remove it"


def all_paths(section: type[Section], prefix: str = "") -> list[str]:
    """Dotted paths of every setting below `section`, sections themselves included."""
    paths = []
    for name, field in section.model_fields.items():
        paths.append(f"{prefix}{name}")
        child = section_of(field.annotation)
        if child is not None:
            paths += all_paths(child, f"{prefix}{name}.")
    return paths


def _expected(detail: ErrorDetails) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "literal_error":
        return f"one of {context['expected']}" if " or " in str(context["expected"]) else str(context["expected"])
    if kind in BOUNDS:
        key, sign = BOUNDS[kind]
        return f"{sign} {context[key]:g}"
    if kind == "string_pattern_mismatch":
        return f"text of the form {context['pattern']}"
    return EXPECTED.get(kind, detail["msg"])


def _shown(value: Any) -> str:
    text = repr(value)
    return f"{text[:60]}... ({type(value).__name__})" if len(text) > 60 else f"{text} ({type(value).__name__})"


def _advice(keys: Sequence[str], section: type[Section]) -> str:
    field = parent_of(keys, section).model_fields.get(keys[-1])
    if field is None or field.is_required() or section_of(field.annotation):
        return "correct the value"
    default = field.get_default(call_default_factory=False)
    return f"correct the value, or remove it (default {'null' if default is None else default})"


def _doc(keys: Sequence[str], section: type[Section]) -> str:
    field = parent_of(keys, section).model_fields.get(keys[-1])
    return (field.description or "").split(". ")[0].rstrip(".") if field is not None else ""


def neutralise(values: dict[str, Any], keys: Sequence[str], section: type[Section]) -> None:
    """Takes a wrong setting out of `values`, or puts a stand-in there where one is required, to look for more
    errors."""
    node: Any = values
    for key in keys[:-1]:
        node = node.setdefault(key, {}) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        return
    node.pop(keys[-1], None)
    field = parent_of(keys, section).model_fields.get(keys[-1])
    if field is not None and field.is_required():
        node[keys[-1]] = _stand_in(field.annotation)


def _stand_in(annotation: Any) -> Any:
    model = section_of(annotation)
    if model is not None:
        fields = model.model_fields.items()
        return {name: _stand_in(field.annotation) for name, field in fields if field.is_required()}
    if typing.get_origin(annotation) is typing.Literal:
        return typing.get_args(annotation)[0]
    return "stand-in"
