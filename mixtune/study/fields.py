"""Building blocks of the sections of a study file: their base class, common types, slugs.

Knows: pydantic, limits that many keys share. Does not know: any key of a study.
"""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"


def _no_bool(value: Any) -> Any:  # noqa: ANN401 - raw YAML
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("holds control characters")
    return value


Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Text = Annotated[str, Field(min_length=1, max_length=4000), AfterValidator(_printable)]
Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool)]
Count = Annotated[Int, Field(gt=0, le=10**9)]
Seed = Annotated[Int, Field(ge=0, lt=2**63)]


class Frozen(BaseModel):
    """Base of every spec: immutable, unknown keys refused, strict about types."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        str_strip_whitespace=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    @classmethod
    def file_keys(cls) -> tuple[str, ...]:
        """Keys that a file may give here, for hints."""
        return tuple(field.alias or name for name, field in cls.model_fields.items())


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Validator of a list whose items all differ."""
    if len(set(values)) != len(values):
        raise ValueError("names the same thing twice")
    return values


def contradiction(problem: str, remedy: str) -> PydanticCustomError:
    """The error of two settings that exclude each other; the remedy is shown on its own line."""
    template = "contradictory settings: {problem}"
    return PydanticCustomError("contradiction", template, {"problem": problem, "remedy": remedy})


def slug(text: str, limit: int = 64) -> str:
    """A name of small letters, digits and single hyphens, such as two-words; may be empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:limit].strip("-")
