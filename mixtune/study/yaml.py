"""YAML text → plain values and the line of each, with no surprises.

Repeated keys, tags, second documents and aliases that expand without end are refused. Scalars are
those of YAML 1.2: `1e-4` is a number, `010` is ten, `no` is a word, a date is text; keys are text.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import MaxDepthExceededError
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import SafeRepresenter
from ruamel.yaml.resolver import VersionedResolver, implicit_resolvers

from mixtune.errors import UserError, shorten

MAX_BYTES = 256 * 1024
MAX_VALUES = 50_000
"""Values after aliases are expanded: a bomb of a few hundred bytes is never built."""
MAX_DEPTH = 40
MAX_DIGITS = 100

Place = tuple[str | int, ...]
"""The keys and positions that lead to a value."""

_TAG = "tag:yaml.org,2002:"
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}
_SCALARS: dict[str, Callable[[str], Any]] = {
    "str": str,
    "bool": lambda text: _WORDS[text.lower()],
    "null": lambda text: _WORDS[text.lower()],
    "int": lambda text: text if set(text) & set("box") else int(text),  # 0x10 and 0o7 are text
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}


def _rules(kinds: Collection[str], also_1_1: bool = False) -> dict[str, list[Any]]:
    """First character of an unquoted text → ruamel's (tag, pattern) of what it may be but text."""
    rules: dict[str, list[Any]] = {}
    for versions, tag, pattern, first in implicit_resolvers:
        if tag.removeprefix(_TAG) in kinds and (also_1_1 or (1, 2) in versions):
            for character in first:
                rules.setdefault(character, []).append((tag, pattern))
    return rules


class _Resolver(VersionedResolver):
    versioned_resolver = _rules(_SCALARS)


class _WritingResolver(VersionedResolver):
    """Also YAML 1.1's rules: what another tool would take for a date or a boolean is quoted."""

    versioned_resolver = _rules({*_SCALARS, "timestamp", "merge", "value"}, also_1_1=True)


class _Representer(SafeRepresenter):
    """Text of several lines as a block; floats as YAML 1.1 reads them too: 1.0e-05, not 1e-05."""

    def represent_str(self, data: str) -> ScalarNode:
        block = "\n" in data and data.replace("\n", "").isprintable()
        return self.represent_scalar(_TAG + "str", data, style="|" if block else None)

    def represent_float(self, data: float) -> ScalarNode:
        node = super().represent_float(data)
        if "." not in node.value:
            node.value = node.value.replace("e", ".0e")
        return node


_Representer.add_representer(str, _Representer.represent_str)
_Representer.add_representer(float, _Representer.represent_float)


@dataclass(frozen=True, slots=True)
class Origin:
    """Source of values: the file's name, and the place of a value → its line from 1."""

    name: str
    lines: Mapping[Place, int] = field(default_factory=dict)

    def line(self, place: Place) -> int | None:
        """The line of a value or of the nearest one that holds it; None if it is in no file."""
        holders = (place[:length] for length in range(len(place), 0, -1))
        return next((self.lines[holder] for holder in holders if holder in self.lines), None)

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
    """Read the text of a small file in UTF-8, with or without a byte order mark.

    Raises:
        error: no such file, not readable, larger than 256 KiB, not UTF-8.
    """
    where = shorten(str(path), 300)
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as fault:
        problem = f"cannot read the file: {getattr(fault, 'strerror', None) or shorten(str(fault))}"
        raise error(problem, where=where, remedy="check the path") from fault
    if len(raw) > MAX_BYTES:
        raise error("too large", where=where, wanted=f"a text file of at most {MAX_BYTES} bytes")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        line, byte = raw.count(b"\n", 0, fault.start) + 1, f"byte 0x{raw[fault.start]:02x}"
        remedy = "save the file with the encoding UTF-8"
        where = f"{where}, line {line}"
        raise error("not UTF-8", where=where, found=byte, remedy=remedy) from fault


def read_yaml(text: str, where: str, error: type[UserError]) -> Document:
    """Read the one document of a YAML text; an empty text gives None.

    Raises:
        error: as `read_documents`, or more than one document.
    """
    documents = read_documents(text, where, error)
    if len(documents) > 1:
        found, remedy = f"{len(documents)} documents", "remove the lines --- or split the file"
        raise error("more than one YAML document", where=where, found=found, remedy=remedy)
    return documents[0] if documents else Document(None, Origin(where))


def read_documents(text: str, where: str, error: type[UserError]) -> list[Document]:
    """Read every document of a YAML text.

    Raises:
        error: not YAML, a repeated key, a tag, a malformed number, aliases that expand to more
            than 50,000 values, more than 40 levels.
    """
    reader = YAML(typ="safe", pure=True)
    reader.Resolver = _Resolver
    reader.max_depth = MAX_DEPTH + 1
    reader.composer.warn_double_anchors = False
    try:
        nodes = list(reader.compose_all(text))
    except YAMLError as fault:
        raise _not_yaml(fault, where, error) from fault
    return [_Builder(where, error).build(node) for node in nodes if node is not None]


def write_yaml(value: object) -> str:
    """Write plain values as YAML that is read back as the same, keys in their order."""
    writer = YAML(typ="safe", pure=True)
    writer.Resolver, writer.Representer = _WritingResolver, _Representer
    writer.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    writer.default_flow_style = False
    text = StringIO()
    writer.dump(value, text)
    return text.getvalue()


def _not_yaml(fault: YAMLError, where: str, error: type[UserError]) -> UserError:
    """The parser's message with the line and without pieces of the file."""
    if mark := getattr(fault, "problem_mark", None):
        where += f", line {mark.line + 1}, column {mark.column + 1}"
    if isinstance(fault, MaxDepthExceededError):
        return error("nested too deeply", where=where, wanted=f"at most {MAX_DEPTH} levels")
    problem = str(getattr(fault, "problem", None) or getattr(fault, "reason", None) or fault)
    problem = problem.replace("('", "'").replace("',)", "'")  # ruamel prints a token as a tuple
    character = getattr(fault, "character", None)
    tabs = "indent with spaces, never with tabs" if "'\\t'" in problem else None
    return error(
        f"not valid YAML: {shorten(problem, 200)}",
        where=where,
        found=f"character {character:#06x}" if isinstance(character, int) else None,
        remedy=tabs or "put text that holds a colon, a star or brackets in quotes",
    )


@dataclass
class _Builder:
    """Makes one document's values from the parser's nodes."""

    where: str
    error: type[UserError]
    lines: dict[Place, int] = field(default_factory=dict)
    values: int = 0

    def build(self, node: Node) -> Document:
        return Document(self._value(node, ()), Origin(self.where, self.lines))

    def _value(self, node: Node, place: Place) -> Any:  # noqa: ANN401 - any YAML value
        self.lines.setdefault(place, node.start_mark.line + 1)
        self.values += 1
        if self.values > MAX_VALUES or len(place) > MAX_DEPTH:
            limits = f"at most {MAX_VALUES} values in {MAX_DEPTH} levels"
            problem = "too many values, or an anchor that holds itself"
            raise self._refusal(node, problem, wanted=limits)
        kind = str(node.tag).removeprefix(_TAG)
        if isinstance(node, MappingNode) and kind == "map":
            return self._mapping(node, place)
        if isinstance(node, SequenceNode) and kind == "seq":
            return [self._value(item, (*place, i)) for i, item in enumerate(node.value)]
        if isinstance(node, ScalarNode) and kind in _SCALARS:
            return self._scalar(node, kind)
        remedy = "remove the tag"
        raise self._refusal(node, "YAML tags are not used here", found=node.tag, remedy=remedy)

    def _mapping(self, node: MappingNode, place: Place) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, ScalarNode):
                raise self._refusal(key, "a key is a list or a mapping", wanted="a word")
            name = key.value
            if name in values:
                problem = f"the key {shorten(name)!r} is given twice"
                first = f"first in line {self.lines[(*place, name)]}"
                raise self._refusal(key, problem, found=first, remedy="keep one of the two")
            self.lines[(*place, name)] = key.start_mark.line + 1
            values[name] = self._value(value, (*place, name))
        return values

    def _scalar(self, node: ScalarNode, kind: str) -> Any:  # noqa: ANN401 - any YAML scalar
        text = node.value
        if kind in ("int", "float") and len(text) > MAX_DIGITS:
            raise self._refusal(node, "a number of too many digits", found=text)
        try:
            return _SCALARS[kind](text)
        except (ValueError, KeyError) as fault:
            remedy = "write it plainly, or in quotes"
            raise self._refusal(node, f"not a usable {kind}", found=text, remedy=remedy) from fault

    def _refusal(self, node: Node, problem: str, **parts: str | None) -> UserError:
        where = f"{self.where}, line {node.start_mark.line + 1}"
        return self.error(problem, where=where, **parts)
