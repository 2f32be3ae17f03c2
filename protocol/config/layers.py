"""From files to one mapping: YAML, `extends`, `--base_config`, dotted overrides; and where each value came from."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from protocol.errors import ConfigError

COMMAND_LINE = "command line"
PARENT_KEYS = ("extends", "inherit")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that `1e-5` is a number and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is no name", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(?:\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass(slots=True)
class Layers:
    """Merged values and, for each dotted path, the file that set it last."""

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    def add(self, values: Mapping[str, Any], source: str, prefix: str = "") -> None:
        """Deep merge: mappings are merged key by key, anything else replaces what was there."""
        _merge(self.values, values)
        self._note(values, source, prefix)

    def _note(self, values: Mapping[str, Any], source: str, prefix: str) -> None:
        for key, value in values.items():
            path = f"{prefix}{key}"
            self.sources[path] = source
            if isinstance(value, Mapping):
                self._note(value, source, f"{path}.")

    def source_of(self, path: str) -> str:
        """The file of the path, or of its nearest parent; the last file where none is known."""
        parts = path.split(".")
        for length in range(len(parts), 0, -1):
            source = self.sources.get(".".join(parts[:length]))
            if source is not None:
                return source
        return next(reversed(self.sources.values()), "empty configuration")


def _merge(target: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping):
            child = target.get(key)
            if not isinstance(child, dict):
                child = target[key] = {}
            _merge(child, value)
        else:
            target[key] = value


def add_file(layers: Layers, path: Path, trail: tuple[Path, ...] = ()) -> None:
    """Merge a file over what is there, its parents first. ConfigError for an unreadable file or a cycle."""
    path = path.resolve()
    if path in trail:
        circle = " → ".join(step.name for step in (*trail[trail.index(path) :], path))
        raise ConfigError(
            f"extends: the files extend each other in a circle, {circle}; remove one of the links ({path})"
        )
    values = _read(path)
    for name in PARENT_KEYS:
        parents = values.pop(name, [])
        parents = [parents] if isinstance(parents, str) else parents
        if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
            raise ConfigError(f"{name}: must be a file name or a list of them, got {parents!r}; write paths ({path})")
        for parent in parents:
            add_file(layers, path.parent / parent, (*trail, path))
    layers.add(values, _shown(path))


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"{_shown(path)}: cannot be read ({error.strerror}); correct the path") from error
    except yaml.MarkedYAMLError as error:
        where = f"{_shown(path)}:{error.problem_mark.line + 1}" if error.problem_mark else _shown(path)
        raise ConfigError(f"{where}: is not valid YAML ({error.problem}); mend it there") from error
    except (yaml.YAMLError, ValueError) as error:  # a date that no calendar has is a ValueError
        raise ConfigError(
            f"{_shown(path)}: is no text that YAML allows ({' '.join(str(error).split())}); mend it, save it as UTF-8"
        ) from error
    if values is None:
        return {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise ConfigError(
            f"{_shown(path)}: must hold a mapping of sections, got {type(values).__name__}; write `model:` etc."
        )
    return values


def _shown(path: Path) -> str:
    """Relative to the working directory where that is shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def add_overrides(layers: Layers, overrides: Sequence[str]) -> None:
    """Merge `training.max_steps=3`; the value is read as YAML."""
    for text in overrides:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise ConfigError(f"{text!r}: is no override, expected dotted.path=value; write e.g. training.max_steps=3")
        try:
            nested: Any = yaml.load(value, Loader=_Loader)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(
                f"{'.'.join(keys)}: the value {value!r} is not valid YAML; quote it ({COMMAND_LINE})"
            ) from error
        for key in reversed(keys):
            nested = {key: nested}
        layers.add(nested, COMMAND_LINE)
