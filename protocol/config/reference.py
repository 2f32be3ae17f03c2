"""docs/configuration.md, written from the models: `python -m protocol.config.reference > docs/configuration.md`."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from protocol.config.base import Section
from protocol.config.explain import section_of
from protocol.config.run import RunConfig

_INTRODUCTION = """# Configuration

Every key of a run file, written from the models in `protocol/config/` by
`python -m protocol.config.reference > docs/configuration.md`; a test keeps this page current.

- A run file is YAML. `extends` or `inherit` names a file or a list of files, relative to the file itself; later ones
  win, mappings are merged key by key. `--base_config` is merged under the run file, `dotted.path=value` arguments over
  it (`training.max_steps=3`).
- Unknown keys are errors. All errors of a file are reported at once, each with its dotted path and the file it is from.
- Relative paths count from the working directory in which the command is started; only `extends` counts from the file.
- The settings in effect are written to `<output_dir>/<run_name>/config.yaml`, which is a run file itself.
"""
_NAMES = {
    "int": "whole number",
    "float": "number",
    "bool": "true/false",
    "str": "text",
    "dict": "mapping",
    "Any": "any",
}
_BOUNDS = (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<="))


def as_markdown() -> str:
    """The page."""
    return "\n".join([_INTRODUCTION, *_section(RunConfig, "")])


def _section(section: type[Section], path: str) -> Iterator[str]:
    """The section's own keys as one table, then its sections."""
    plain = {name: field for name, field in section.model_fields.items() if section_of(field.annotation) is None}
    if path:
        yield f"## `{path}`\n\n{_flat(section.__doc__)}\n"
    if plain:
        yield "| key | type | default | meaning |\n|---|---|---|---|"
        for name, field in plain.items():
            key = f"{path}.{name}" if path else name
            yield f"| `{key}` | {_escaped(_kind(field))} | {_default(field)} | {_escaped(_flat(field.description))} |"
        yield ""
    for name, field in section.model_fields.items():
        nested = section_of(field.annotation)
        if nested is not None:
            yield from _section(nested, f"{path}.{name}" if path else name)


def _flat(text: str | None) -> str:
    return " ".join((text or "").split())


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def _kind(field: FieldInfo) -> str:
    bounds = _bounds(field.metadata) or _bounds(_nested_metadata(field.annotation))
    return f"{_type_name(field.annotation)}{f' {bounds}' if bounds else ''}"


def _nested_metadata(annotation: Any) -> list[Any]:
    """Metadata of the members of a union such as `PositiveInt | None`."""
    members = typing.get_args(annotation) if _is_union(annotation) else ()
    return [item for member in members for item in getattr(member, "__metadata__", ())]


def _bounds(metadata: list[Any]) -> str:
    flat = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    found = [f"{sign} {getattr(item, name):g}" for item in flat for name, sign in _BOUNDS if hasattr(item, name)]
    return ", ".join(found)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _type_name(annotation: Any) -> str:
    origin, members = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type_name(members[0])
    if origin is typing.Literal:
        return ", ".join(f"`{str(member).lower() if isinstance(member, bool) else member}`" for member in members)
    if _is_union(annotation):
        return " or ".join(_type_name(member) for member in members if member is not type(None))
    if origin is tuple:
        return "list of names"
    name = getattr(origin or annotation, "__name__", str(annotation))
    return _NAMES.get(name, name)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{list(value)}`" if isinstance(value, tuple) else f"`{value}`"


if __name__ == "__main__":
    print(as_markdown(), end="")
