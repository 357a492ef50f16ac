"""What is wrong with a file, in its writer's words: key, line, what was found, the remedy.

Knows: pydantic's faults, the keys of the model that was to be. Does not know: which files there
are, what the keys mean.
"""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mixtune.errors import did_you_mean, shorten
from mixtune.shorthand import ALIASES
from mixtune.strict_yaml import Origin, Place


class Fault:
    """One of pydantic's faults in the user's words: where, what, what was found, the remedy."""

    def __init__(
        self,
        fault: Any,  # noqa: ANN401 - pydantic's ErrorDetails
        typed: Mapping[tuple[str, ...], str],
        origin: Origin,
        root: type[BaseModel],
    ) -> None:
        """Put a fault into words.

        Args:
            fault: one of pydantic's.
            typed: place → the alias that was typed for it.
            origin: lines of the file.
            root: the model that the file was to be.
        """
        place = tuple(part for part in fault["loc"] if part != "[key]")
        kind, alias = fault["type"], typed.get(place)
        own = ".".join(shorten(part) for part in place) or "study"
        self.key = f"{alias} (read as {own})" if alias else own
        self.line = origin.line(tuple(alias.split(".")) if alias else place)
        said = str(fault["msg"]).removeprefix("Value error, ").replace("Input should", "should")
        self.what, default = _WORDS.get(kind, (said[:1].lower() + said[1:], _REMEDY))
        self.found = None if kind in ("missing", "extra_forbidden") else shorten(fault["input"])
        self.remedy = default
        if kind == "extra_forbidden":
            self.what = f"no such key; {_hint(place, root)}"
        if said.startswith("contradictory"):
            self.what, _, self.remedy = said.rpartition("; ")

    @property
    def text(self) -> str:
        """The fault in one line."""
        line = f"line {self.line}: " if self.line else ""
        return f"{line}{self.key}: {self.what}{f' (found {self.found})' if self.found else ''}"


_REMEDY = "mend it, or leave the key out for its default"
_WORDS = {
    "missing": ("is missing", "add the key"),
    "extra_forbidden": ("", "mend or remove the key; mixtune schema prints all there are"),
    "string_type": ("should be a word", "put it in quotes if it looks like a number"),
    "string_pattern_mismatch": (
        "lower case letters, digits, - and _ only, 64 at most",
        "write names as `mixtune tasks` shows them",
    ),
    "tuple_type": ("should be a list", "write [a, b]"),
    "too_short": ("needs at least one item", "write [a, b]"),
    "model_type": ("should be a mapping", "write {key: value}, or leave it out for its default"),
    "dict_type": ("should be a mapping", "write {name: {rows: 100}}"),
}
"""Kind of fault → what is said of it and the remedy, where pydantic speaks of its own types."""


def faults_of(
    error: ValidationError,
    typed: Mapping[tuple[str, ...], str],
    origin: Origin,
    root: type[BaseModel],
) -> list[Fault]:
    """The faults to tell; that a list is too short is none where its items were refused."""
    raw = error.errors()
    inner = {fault["loc"][:length] for fault in raw for length in range(len(fault["loc"]))}
    told = [f for f in raw if not (f["type"] == "too_short" and f["loc"] in inner)]
    return [Fault(fault, typed, origin, root) for fault in told]


def _hint(place: Place, root: type[BaseModel]) -> str:
    """What an unknown key may have meant: a key of another section, or one that is close."""
    *parents, key = (str(part) for part in place)
    here = _keys_at(parents, root)
    homes = {dotted.rpartition(".")[2]: dotted for dotted in _dotted(root)}
    if key in homes:
        section = homes[key].rpartition(".")[0]
        return f"{key} belongs {f'under {section}' if section else 'at the top level'}"
    known = homes | ({} if parents else dict.fromkeys(ALIASES)) | dict.fromkeys(here)
    close = get_close_matches(key, known, n=1, cutoff=0.6)
    return f"did you mean {(known[close[0]] or close[0])!r}?" if close else did_you_mean(key, here)


def _dotted(root: type[BaseModel]) -> list[str]:
    """Every key that has one place."""
    found = list(root.model_fields)
    for name, field in root.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found += [f"{name}.{key}" for key in kind.model_fields]
    return found


def _keys_at(path: Sequence[str], root: type[BaseModel]) -> list[str]:
    """The keys that are allowed at a place."""
    here = root
    for part in path:
        if part not in here.model_fields:
            continue  # a place in a list, or a name that the user chose
        inner = _model_in(here.model_fields[part].annotation)
        if inner is None:
            break
        here = inner
    return list(here.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - any annotation
    """The model that an annotation holds: itself, or in a list, a mapping, an option."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_model_in, get_args(annotation))), None)
