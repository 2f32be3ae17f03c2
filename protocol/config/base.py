"""What every section of the configuration shares: closed, frozen, strict, documented under each field."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """A mapping of the run file. Unknown keys are errors (SPEC A10); the string under a field is its documentation."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        protected_namespaces=(),
    )


class Problem(NamedTuple):
    """One thing that is wrong with a configuration."""

    paths: tuple[str, ...]
    """Dotted paths involved; the message starts with the first, and is dropped where another error has one of them."""
    message: str
    """`<what, with got and expected>; <what to change>`."""

    @property
    def path(self) -> str:
        """The first of `paths`."""
        return self.paths[0]


class RuleError(ValueError):
    """Raised by a section's own cross-field rules, with paths relative to that section."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(" | ".join(f"{problem.path}: {problem.message}" for problem in problems))
        self.problems = tuple(problems)


def require(problems: Sequence[Problem]) -> None:
    """Raise the problems, if there are any, as one `RuleError`."""
    if problems:
        raise RuleError(problems)


def _as_names(value: Any) -> Any:
    """A single name may be written without a list."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _normal(value: Any) -> Any:
    """Names of modes are read without regard to case and surrounding space."""
    return value.strip().lower() if isinstance(value, str) else value


def zero_means(default: float) -> Callable[[Any], Any]:
    """A reader that turns 0 into the default, where the runbook's trainer does (SPEC 16, 18, 4.3)."""

    def read(value: Any) -> Any:
        return default if value == 0 and not isinstance(value, bool) else value

    return read


Names = Annotated[tuple[str, ...], BeforeValidator(_as_names)]
AnyCase = BeforeValidator(_normal)
YamlNo = BeforeValidator(lambda value: "no" if value is False else value)
"""YAML reads a bare `no` as false."""
PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
UnitFloat = Annotated[float, Field(ge=0, le=1)]
Fill = Annotated[float, Field(gt=0, le=1)]
NonEmpty = Annotated[str, Field(min_length=1)]
