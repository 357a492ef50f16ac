"""Keys of YAML files as pydantic models: base class, common types, and faults in a file's terms.

Does not know: any key of a study or task.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Annotated, Any, NamedTuple, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import ErrorDetails, PydanticCustomError

from mixtune.errors import UserError, did_you_mean, shorten
from mixtune.study.yaml import Origin, Place

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
        return tuple(info.alias or name for name, info in cls.model_fields.items())


def _distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) != len(values):
        raise ValueError("names the same thing twice")
    return values


Distinct = AfterValidator(_distinct)
"""Validator of a list whose items all differ."""


def contradiction(problem: str, remedy: str) -> PydanticCustomError:
    """The error of two settings that exclude each other; the remedy is shown on its own line."""
    template = "contradictory settings: {problem}"
    return PydanticCustomError("contradiction", template, {"problem": problem, "remedy": remedy})


def secret(problem: str, remedy: str) -> PydanticCustomError:
    """The error of a value that is not shown, as it may be a key."""
    return PydanticCustomError("secret", "{problem}", {"problem": problem, "remedy": remedy})


def slug(text: str, limit: int = 64) -> str:
    """A name of small letters, digits and single hyphens, such as two-words; may be empty."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:limit].strip("-")


# ---- faults --------------------------------------------------------------------------------------

MAX_FAULTS = 5
"""Faults that one message names."""
_REMEDY = "fix it, or leave the key out for its default"
_WORDS = {
    "missing": ("missing", "add the key"),
    "string_type": ("should be a word", "put quotes around the word"),
    "tuple_type": ("should be a list", "write [a, b]"),
    "too_short": ("needs at least one item", "write [a, b]"),
    "model_type": ("should be a mapping", "write {key: value}, or leave it out for its default"),
    "dict_type": ("should be a mapping", "write {name: {rows: 100}}"),
}
"""pydantic's error type → problem and remedy, where its own message speaks of Python's types."""


@dataclass(frozen=True, slots=True)
class FaultContext:
    """A file that was refused.

    `typed`: place → the key that the file has for it, in dots, where that is another tool's.
    `aliases`: further keys that may stand at the top level.
    """

    root: type[Frozen]
    origin: Origin
    typed: Mapping[Place, str] = field(default_factory=dict)
    aliases: Collection[str] = ()

    @property
    def all_keys(self) -> str:
        """A remedy: the command that prints all keys of the file."""
        return f"mixtune schema --of {self.root.__name__.lower()} prints all keys"


class _Fault(NamedTuple):
    """One key that cannot be used; `value` is None where showing it would not help."""

    line: int | None
    problem: str
    value: str | None
    remedy: str


def refusal(
    details: Sequence[ErrorDetails], context: FaultContext, error: type[UserError]
) -> UserError:
    """The error to raise for a file: one fault with its remedy, or the first five of several."""
    # Without "too short" for a list whose own items were refused.
    holders = {d["loc"][:length] for d in details for length in range(len(d["loc"]))}
    faults = [
        _fault(d, context) for d in details if d["type"] != "too_short" or d["loc"] not in holders
    ]
    where = context.origin.name
    if len(faults) == 1:
        line, problem, value, remedy = faults[0]
        place = f"{where}, line {line}" if line else where
        return error(problem, where=place, found=value, remedy=remedy)
    lines = [f"{len(faults)} faults"]
    for line, problem, value, _ in faults[:MAX_FAULTS]:
        place = f"line {line}: " if line else ""
        lines.append(f"{place}{problem}{f' (found {value})' if value else ''}")
    lines += [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
    remedy = f"fix the keys named; {context.all_keys}"
    return error("\n  ".join(lines), where=where, remedy=remedy)


def _fault(detail: ErrorDetails, context: FaultContext) -> _Fault:
    place = tuple(part for part in detail["loc"] if part != "[key]")
    alias = context.typed.get(place)
    key = ".".join(shorten(str(part)) for part in place) or context.root.__name__.lower()
    problem, remedy = _words(detail, place, context)
    hidden = not place or detail["type"] in ("missing", "extra_forbidden", "secret")
    return _Fault(
        line=context.origin.line(tuple(alias.split(".")) if alias else place),
        problem=f"{f'{alias} (read as {key})' if alias else key}: {problem}",
        value=None if hidden else shorten(detail["input"]),
        remedy=remedy,
    )


def _words(detail: ErrorDetails, place: Place, context: FaultContext) -> tuple[str, str]:
    """Problem and remedy of an error."""
    kind, details = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        remedy = f"fix or remove the key; {context.all_keys}"
        return f"no such key; {_hint(place, context)}", remedy
    if details.get("pattern") == NAME_PATTERN:
        example = slug(detail["input"]) or "my-name"
        problem = f"lower case letters, digits, - and _ only, 64 at most, such as {example}"
        return problem, "write names as `mixtune tasks` shows them"
    if kind in _WORDS:
        return _WORDS[kind]
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return shorten(message[:1].lower() + message[1:], 400), details.get("remedy", _REMEDY)


def _hint(place: Place, context: FaultContext) -> str:
    """The key that an unknown one may have meant: of another section, or spelt alike."""
    *parents, key = (str(part) for part in place)
    model = context.root
    for part in parents:  # positions in lists and names that the user chose are passed over
        if part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    keys = model.file_keys()
    # Keys of the file's sections and of the file itself → where they stand, in dots.
    places: dict[str, str] = {}
    for section, info in context.root.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, Frozen):
            places |= {name: f"{section}.{name}" for name in info.annotation.model_fields}
    places |= {name: name for name in context.root.model_fields}
    if key in places:
        section = places[key].rpartition(".")[0]
        return f"{key} belongs {f'under {section}' if section else 'at the top level'}"
    known = places | {name: name for name in (*(() if parents else context.aliases), *keys)}
    close = get_close_matches(key, known, n=1, cutoff=0.6)
    return f"did you mean {known[close[0]]!r}?" if close else did_you_mean(key, keys)


def _model_in(annotation: Any) -> type[Frozen] | None:  # noqa: ANN401 - any annotation
    """The model that an annotation is, or holds in a list, a mapping or an option."""
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
