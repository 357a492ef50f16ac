"""YAML text → plain values and the line of each, with no surprises.

Stricter than the format: a repeated key, a tag, another document or an expansion without end is
refused. Numbers, booleans and nulls are those of YAML 1.2, so `1e-4` is a number, `010` is ten and
`no` is a word; keys are always words.

Knows: YAML. Does not know: what any key means.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mixtune.errors import UserError, shorten

MAX_BYTES = 256 * 1024
MAX_VALUES = 50_000
"""Values after anchors are expanded: what is behind a bomb of a few hundred bytes is not built."""
MAX_DEPTH = 40
MAX_DIGITS = 100

_TAG = "tag:yaml.org,2002:"
_NUMBER = r"[-+]?(?:\.[0-9]+|[0-9][0-9_]*(?:\.[0-9_]*)?)(?:[eE][-+]?[0-9]+)?"
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}


class _Loader(yaml.SafeLoader):
    """pyyaml's loader with the numbers and words of YAML 1.2 in place of those of 1.1."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 - pyyaml's own way to set them


class _Dumper(yaml.SafeDumper):
    """pyyaml's writer, which puts in quotes what either version would take for a number."""


for _kind, _pattern, _first in (
    ("null", r"(?:~|null|Null|NULL|)", ["~", "n", "N", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)", list("tTfF")),
    ("int", r"[-+]?[0-9][0-9_]*", list("-+0123456789")),
    ("float", rf"(?:{_NUMBER}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))", list("-+.0123456789")),
):
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(rf"^{_pattern}$"), _first)

Place = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where values were read: the file's name, and the place of a value → its line from 1."""

    name: str
    lines: Mapping[Place, int] = field(default_factory=dict)

    def line(self, place: Place) -> int | None:
        """The line of a value, or of the nearest one that holds it; None for one of no file."""
        held = (place[:length] for length in range(len(place), 0, -1))
        return next((self.lines[part] for part in held if part in self.lines), None)

    def at(self, dotted: str) -> str:
        """The file and the line of a key such as `train.lr`."""
        line = self.line(tuple(dotted.split(".")))
        return f"{self.name}, line {line}" if line else self.name


@dataclass(frozen=True, slots=True)
class Document:
    """A value made of dicts, lists and scalars, and where it was read."""

    value: Any
    origin: Origin


def read_file(path: Path, error: type[UserError]) -> str:
    """The text of a small file in UTF-8, with or without a byte order mark.

    Raises:
        error: no such file, not readable, larger than 256 KiB, not UTF-8.
    """
    where = shorten(str(path), 300)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as fault:
        raise error(
            f"cannot read the file: {getattr(fault, 'strerror', None) or shorten(str(fault))}",
            where=where,
            remedy="check the path",
        ) from fault
    if len(raw) > MAX_BYTES:
        raise error("too large", where=where, wanted=f"a text file of at most {MAX_BYTES} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line = raw.count(b"\n", 0, fault.start) + 1
        raise error(
            "not UTF-8",
            where=f"{where}, line {line}",
            found=f"byte 0x{raw[fault.start]:02x}",
            remedy="save the file with the encoding UTF-8",
        ) from fault


def read_yaml(text: str, where: str, error: type[UserError]) -> Document:
    """The one document of a YAML text; an empty text gives None.

    Raises:
        error: as `read_documents`, or more than one document.
    """
    found = read_documents(text, where, error)
    if len(found) > 1:
        raise error(
            "more than one YAML document",
            where=where,
            found=f"{len(found)} documents",
            remedy="remove the lines that hold --- only, or keep one file for each",
        )
    return found[0] if found else Document(None, Origin(where))


def read_documents(text: str, where: str, error: type[UserError]) -> list[Document]:
    """Every document of a YAML text.

    Raises:
        error: not YAML, a key given twice, a tag, a number that is none, anchors that expand to
            more than 50,000 values or nest deeper than 40.
    """
    try:
        nodes = list(yaml.compose_all(text, _Loader))
    except yaml.YAMLError as fault:
        raise _not_yaml(fault, where, error) from fault
    except RecursionError as fault:
        raise error("nested too deeply", where=where, wanted=f"{MAX_DEPTH} levels") from fault
    return [_Builder(where, error).build(node) for node in nodes if node is not None]


def write_yaml(value: object) -> str:
    """Plain values as YAML text that is read back as the same, keys in their order."""
    text: str = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


def _not_yaml(fault: yaml.YAMLError, where: str, error: type[UserError]) -> UserError:
    """What pyyaml says, with the line and without pieces of the file."""
    mark = getattr(fault, "problem_mark", None)
    place = f"{where}, line {mark.line + 1}, column {mark.column + 1}" if mark else where
    problem = getattr(fault, "problem", None) or getattr(fault, "reason", None) or fault
    spaces = "indent with spaces, never with tabs" if "'\\t'" in str(problem) else None
    quotes = "put text that holds a colon, a star or brackets in quotes"
    found = getattr(fault, "character", None)
    return error(
        f"not valid YAML: {shorten(str(problem), 200)}",
        where=place,
        found=f"character {found:#06x}" if isinstance(found, int) else None,
        remedy=spaces or quotes,
    )


class _Builder:
    """Makes one document's values from pyyaml's nodes."""

    def __init__(self, where: str, error: type[UserError]) -> None:
        self.where = where
        self.error = error
        self.lines: dict[Place, int] = {}
        self._values = 0

    def build(self, node: yaml.Node) -> Document:
        return Document(self._value(node, ()), Origin(self.where, self.lines))

    def _value(self, node: yaml.Node, place: Place) -> Any:  # noqa: ANN401 - any YAML value
        self.lines.setdefault(place, node.start_mark.line + 1)
        self._values += 1
        if self._values > MAX_VALUES or len(place) > MAX_DEPTH:
            raise self._fault(
                node,
                "too many values, or an anchor that holds itself",
                wanted=f"at most {MAX_VALUES} values in {MAX_DEPTH} levels",
            )
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self._value(item, (*place, i)) for i, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._fault(key, "a key is a list or a mapping", wanted="a word")
            name = key.value
            if name in found:
                first = self.lines[(*place, name)]
                raise self._fault(
                    key,
                    f"the key {shorten(name)!r} is given twice",
                    found=f"first in line {first}",
                    remedy="keep one of the two",
                )
            self.lines[(*place, name)] = key.start_mark.line + 1
            found[name] = self._value(value, (*place, name))
        return found

    def _scalar(self, node: yaml.Node) -> Any:  # noqa: ANN401 - any YAML scalar
        kind, text = node.tag.removeprefix(_TAG), node.value
        try:
            match kind:
                case "str":
                    return text
                case "bool" | "null":
                    return _WORDS[text.lower()]
                case "int" if len(text) <= MAX_DIGITS:
                    return int(text)
                case "float" if len(text) <= MAX_DIGITS:
                    return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except (ValueError, KeyError) as fault:
            raise self._fault(
                node, f"not a usable {kind}", found=text, remedy="write it plainly, or in quotes"
            ) from fault
        if kind in ("int", "float"):
            raise self._fault(node, "a number of too many digits", found=text)
        raise self._fault(node, "YAML tags are not used here", found=node.tag, remedy="remove it")

    def _fault(
        self,
        node: yaml.Node,
        what: str,
        *,
        found: object = None,
        wanted: str | None = None,
        remedy: str | None = None,
    ) -> UserError:
        where = f"{self.where}, line {node.start_mark.line + 1}"
        return self.error(what, where=where, found=found, wanted=wanted, remedy=remedy)
