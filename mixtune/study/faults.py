"""pydantic's validation errors in terms of the file: line, key, problem, value, remedy.

Knows: pydantic's error types, the keys of the model that was validated. Does not know: which files
there are, the meaning of a key.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, get_args

from pydantic_core import ErrorDetails

from mixtune.errors import UserError, did_you_mean, shorten
from mixtune.study.fields import NAME_PATTERN, Frozen, slug
from mixtune.study.yaml import Origin, Place

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
    def name(self) -> str:
        """The kind of file: study or task."""
        return self.root.__name__.lower()

    @property
    def command(self) -> str:
        """The command that prints all keys of the file."""
        return f"mixtune schema --of {self.name}"


@dataclass(frozen=True, slots=True)
class Fault:
    """One key that cannot be used; `value` is None where showing it would not help."""

    line: int | None
    key: str
    problem: str
    value: str | None
    remedy: str

    @property
    def text(self) -> str:
        """The fault on one line, without its remedy."""
        line = f"line {self.line}: " if self.line else ""
        return f"{line}{self.key}: {self.problem}{f' (found {self.value})' if self.value else ''}"


def refusal(
    details: Sequence[ErrorDetails], context: FaultContext, error: type[UserError]
) -> UserError:
    """The error to raise for a file: one fault with its remedy, or the first five of several."""
    faults = [_fault(detail, context) for detail in _causes(details)]
    where = context.origin.name
    if len(faults) == 1:
        (fault,) = faults
        place = f"{where}, line {fault.line}" if fault.line else where
        problem = f"{fault.key}: {fault.problem}"
        return error(problem, where=place, found=fault.value, remedy=fault.remedy)
    lines = [f"{len(faults)} faults", *(fault.text for fault in faults[:MAX_FAULTS])]
    lines += [f"and {len(faults) - MAX_FAULTS} more"] if len(faults) > MAX_FAULTS else []
    remedy = f"fix the keys named; {context.command} prints all keys"
    return error("\n  ".join(lines), where=where, remedy=remedy)


def _causes(details: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """The errors without "too short" for a list whose own items were refused."""
    holders = {d["loc"][:length] for d in details for length in range(len(d["loc"]))}
    return [d for d in details if d["type"] != "too_short" or d["loc"] not in holders]


def _fault(detail: ErrorDetails, context: FaultContext) -> Fault:
    place = tuple(part for part in detail["loc"] if part != "[key]")
    alias = context.typed.get(place)
    key = ".".join(shorten(str(part)) for part in place) or context.name
    problem, remedy = _words(detail, place, context)
    hidden = not place or detail["type"] in ("missing", "extra_forbidden")
    return Fault(
        line=context.origin.line(tuple(alias.split(".")) if alias else place),
        key=f"{alias} (read as {key})" if alias else key,
        problem=problem,
        value=None if hidden else shorten(detail["input"]),
        remedy=remedy,
    )


def _words(detail: ErrorDetails, place: Place, context: FaultContext) -> tuple[str, str]:
    """Problem and remedy of an error."""
    kind, details = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        remedy = f"fix or remove the key; {context.command} prints all keys"
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
    keys = _model_at(parents, context.root).file_keys()
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


def _model_at(path: Sequence[str], root: type[Frozen]) -> type[Frozen]:
    """The model of a section; positions in lists and names that the user chose are passed over."""
    model = root
    for part in path:
        if part in model.model_fields:
            inner = _model_in(model.model_fields[part].annotation)
            if inner is None:
                break
            model = inner
    return model


def _model_in(annotation: Any) -> type[Frozen] | None:  # noqa: ANN401 - any annotation
    """The model that an annotation is, or holds in a list, a mapping or an option."""
    if isinstance(annotation, type) and issubclass(annotation, Frozen):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
