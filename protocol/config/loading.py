"""Builds a `RunConfig` and, where that fails, says everything that is wrong in one error."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from protocol.config.base import Problem, Section
from protocol.config.explain import explain, neutralise
from protocol.config.layers import COMMAND_LINE, Layers, add_file, add_overrides
from protocol.config.run import RunConfig
from protocol.config.sections import DebugConfig
from protocol.errors import refuse

S = TypeVar("S", bound=Section)


def load_config(
    path: str | Path, *, base: str | Path | None = None, overrides: Sequence[str] = (), debug: bool = False
) -> RunConfig:
    """The run that a YAML file describes: `base` first, the file over it, `overrides` (`training.max_steps=3`) last.

    `debug` switches the file's `debug` section on. ConfigError lists everything that is wrong, one line each:
    `<dotted.path>: <what, with got and expected>; <what to change> (<file>)`.
    """
    layers = Layers()
    if base is not None:
        add_file(layers, Path(base))
    add_file(layers, Path(path))
    add_overrides(layers, [*overrides, *(["debug.enabled=true"] if debug else [])])
    training = layers.values.setdefault("training", {})
    if isinstance(training, dict) and training.get("run_name") is None:
        training["run_name"] = Path(path).stem
    return _build(RunConfig, layers)


def config_from_mapping(values: Mapping[str, Any], *, source: str = "mapping") -> RunConfig:
    """Like `load_config`, from a mapping that is already there."""
    layers = Layers()
    layers.add(copy.deepcopy(dict(values)), source)
    return _build(RunConfig, layers)


def _build(section: type[S], layers: Layers) -> S:
    """Validates again without what was wrong, so that a typo does not hide a rule between sections."""
    values = copy.deepcopy(layers.values)
    _apply_debug(values, layers)
    found: list[Problem] = []
    for _ in range(8):
        try:
            built = section.model_validate(values)
        except ValidationError as error:
            new = [problem for problem in explain(error, section) if not _known(problem, found)]
            found += new
            if not new:
                break
            for path in (path for problem in new for path in problem.paths):
                neutralise(values, path.split("."), section)
        else:
            if not found:
                return built
            break
    shown = {problem.path: problem for problem in found}.values()
    refuse([_line(problem, layers) for problem in shown], "settings")
    raise AssertionError("what is not built has a problem")


def _known(problem: Problem, found: Sequence[Problem]) -> bool:
    """True where a reported error touches the same setting: it would only be an echo."""
    reported = {path for other in found for path in other.paths}
    return any(_overlap(path, other) for path in problem.paths for other in reported)


def _overlap(path: str, other: str) -> bool:
    return path == other or path.startswith(other + ".") or other.startswith(path + ".")


def _apply_debug(values: dict[str, Any], layers: Layers) -> None:
    """`debug.enabled` replaces output folder and sample limits (SPEC 19.2), but for those of the command line."""
    debug = values.get("debug")
    if not isinstance(debug, dict) or debug.get("enabled") is not True:
        return
    targets = {"output_dir": "training", "train_sample_limit": "custom", "val_sample_limit": "custom"}
    for name, section in targets.items():
        value = debug.get(name, DebugConfig.model_fields[name].default)
        asked, shortened = (layers.sources.get(f"{part}.{name}") == COMMAND_LINE for part in (section, "debug"))
        if isinstance(values.setdefault(section, {}), dict) and value is not None and (shortened or not asked):
            values[section][name] = value
            layers.sources[f"{section}.{name}"] = layers.source_of(f"debug.{name}")


def _line(problem: Problem, layers: Layers) -> str:
    return f"{problem.path}: {problem.message} ({layers.source_of(problem.path)})"
