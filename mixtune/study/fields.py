"""What the sections of a study file are made of: their base class, and kinds of values.

Knows: pydantic, limits that many keys share. Does not know: any key of a study.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field


def _no_bool(value: Any) -> Any:  # noqa: ANN401 - raw YAML
    if isinstance(value, bool):
        raise ValueError("should be a number, not true or false")
    return value


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("holds control characters")
    return value


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
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
