"""The prompt templates of task files: jinja2, cut down so that every rendering ends soon.

A task file may come from anybody. Templates see the record's fields and nothing else; loops run
over fields, a hundred thousand rounds in all; what could build a text out of nothing (`*` on
texts, `range`, macros, padding) is not there; regular expressions have one quantifier at most.

Knows: template text, values. Does not know: task files, records' meaning, roles.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.exceptions import FilterArgumentError, SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from mixtune.errors import DataError, shorten

ROUNDS = 100_000
"""Rounds that the loops of one rendering may take, all together."""
LONGEST = 20_000_000
"""Characters that a rendering, or a value inside it, may have."""
LONGEST_SEARCH = 20_000
"""Characters that a pattern with a quantifier is tried on: its time grows with their square."""
LONGEST_TEMPLATE = 20_000
COPIES = 200
"""How many times an expression may hold a field, `set` counted through."""

_BUDGET = "rounds left"  # has a space, so that no template can name it

FILTERS = (
    "abs", "capitalize", "count", "default", "first", "float", "int", "items", "last", "length",
    "lower", "round", "string", "title", "trim", "truncate", "upper", "wordcount",
)  # fmt: skip
"""jinja2's own filters that templates may use; join, replace, tojson, regex_replace are ours."""

METHODS = {
    "strip", "lstrip", "rstrip", "lower", "upper", "title", "capitalize", "casefold", "split",
    "rsplit", "splitlines", "startswith", "endswith", "removeprefix", "removesuffix", "partition",
    "rpartition", "get", "items", "keys", "values", "count", "find", "index", "isdigit", "isalpha",
    "isalnum", "isupper", "islower",
}  # fmt: skip
"""What may be called on a value: nothing that makes it longer."""

_REFUSED: dict[type[nodes.Node], str] = {
    nodes.Macro: "macro",
    nodes.CallBlock: "call",
    nodes.FilterBlock: "filter",
    nodes.AssignBlock: "set with an end",
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "from",
    nodes.Extends: "extends",
    nodes.Block: "block",
}


def check(source: str) -> None:
    """Refuse what is no template, or one that uses what templates here do not have.

    Raises:
        ValueError: with the line.
    """
    try:
        _template(source)
    except jinja2.TemplateSyntaxError as error:
        message = shorten(error.message or "syntax", 200)
        raise ValueError(f"not a template, line {error.lineno}: {message}") from error
    except RecursionError as error:
        raise ValueError("not a template: nested too deeply") from error


@lru_cache(maxsize=1024)
def variables(*sources: str | None) -> frozenset[str]:
    """Names that templates take from outside."""
    parsed = [_environment().parse(source) for source in sources if source is not None]
    return frozenset().union(*map(jinja2.meta.find_undeclared_variables, parsed))


def render(source: str, values: Mapping[str, Any], where: str) -> str:
    """Render and strip a template.

    Raises:
        DataError: what goes wrong inside it is a fault of the task file or of the record.
    """
    parts: list[str] = []
    size = 0
    try:
        template = _template(source)
        # `generate` would merge in the environment's globals, of which there are none.
        context = template.new_context({**values, _BUDGET: [ROUNDS]}, shared=True)
        for part in template.root_render_func(context):
            size += len(part)
            if size > LONGEST:
                raise SecurityError(f"the text gets longer than {LONGEST} characters")
            parts.append(part)
    except (
        jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError,
        RecursionError,
    ) as error:  # fmt: skip
        raise DataError(
            f"the template fails: {shorten(str(error), 300)}",
            where=where,
            remedy="mend the task file or the record",
        ) from error
    return "".join(parts).strip()


@lru_cache(maxsize=1024)
def _template(source: str) -> jinja2.Template:
    return _environment().from_string(source)


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, with bounded operators, loops and filters."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401 - jinja2's own interface
        """An operator that could build something huge, bounded."""
        numbers = all(isinstance(value, int | float) for value in (left, right))
        if operator == "**" or (operator in "*%" and not numbers):
            only = "not available" if operator == "**" else "for two numbers only"
            raise SecurityError(f"{operator} is {only}")
        if numbers:
            if max(abs(left), abs(right)) > 1e15:
                raise SecurityError("a number over 1e15")
        elif len(left) + len(right) > LONGEST:
            raise SecurityError(f"a text gets longer than {LONGEST} characters")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > LONGEST_TEMPLATE:
            raise jinja2.TemplateSyntaxError(f"over {LONGEST_TEMPLATE} characters", 1)
        return _Bounds().visit(super()._parse(source, name, filename))  # type: ignore[no-any-return]


class _Bounds(NodeTransformer):
    """Refuses what has no bound, and has every loop counted."""

    def __init__(self) -> None:
        self._copies: dict[str, int] = {}

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:  # noqa: ANN401 - jinja2's own interface
        word = _REFUSED.get(type(node))
        if word is not None:
            raise jinja2.TemplateSyntaxError(f"{{% {word} %}} is not available", node.lineno)
        return super().generic_visit(node, *args, **kwargs)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Loops that call themselves have no bound."""
        if node.recursive:
            raise jinja2.TemplateSyntaxError("a recursive loop is not available", node.lineno)
        copies = self._weight(node.iter, node.lineno)
        self._copies |= {n.name: copies for n in _names(node.target)}
        made = self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "counted", [], [], None, None, lineno=node.lineno)
        return made

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        """Only methods that make nothing longer."""
        if not isinstance(node.node, nodes.Getattr) or node.node.attr not in METHODS:
            what = getattr(node.node, "attr", None) or getattr(node.node, "name", "this")
            raise jinja2.TemplateSyntaxError(f"{what}() is not available", node.lineno)
        return self.generic_visit(node)

    def visit_Assign(self, node: nodes.Assign) -> nodes.Node:
        """A name stands for as many copies as its value holds."""
        copies = self._weight(node.node, node.lineno)
        self._copies |= {n.name: copies for n in _names(node.target)}
        return self.generic_visit(node)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        """Every expression is bounded."""
        for part in node.nodes:
            self._weight(part, node.lineno)
        return self.generic_visit(node)

    def _weight(self, node: nodes.Node, line: int) -> int:
        total = sum(self._copies.get(n.name, 1) for n in _names(node))
        if total > COPIES:
            raise jinja2.TemplateSyntaxError(f"over {COPIES} copies of fields in one value", line)
        return total


def _names(node: nodes.Node) -> Iterator[nodes.Name]:
    if isinstance(node, nodes.Name):
        yield node
    yield from node.find_all(nodes.Name)


@jinja2.pass_context
def _counted(context: jinja2.runtime.Context, items: Iterable[Any]) -> Iterator[Any]:
    """The items of a loop, while rounds are left."""
    left = context[_BUDGET]
    for item in items:
        left[0] -= 1
        if left[0] < 0:
            raise SecurityError(f"the loops take more than {ROUNDS} rounds")
        yield item


def _join(items: Iterable[Any], between: str = "", attribute: str | None = None) -> str:
    """jinja2's `join`, with a bound."""
    parts: list[str] = []
    size = 0
    for item in items:
        value = item[attribute] if attribute is not None else item
        parts.append("" if value is None else str(value))
        size += len(parts[-1]) + len(between)
        if size > LONGEST:
            raise FilterArgumentError(f"join: longer than {LONGEST} characters")
    return between.join(parts)


def _replace(text: Any, old: str, new: str) -> str:  # noqa: ANN401 - any field
    """jinja2's `replace`, with a bound."""
    held = str(text)
    if len(held) * len(new) > LONGEST and held.count(old) * len(new) > LONGEST:
        raise FilterArgumentError(f"replace: longer than {LONGEST} characters")
    return held.replace(old, new)


def _tojson(value: Any) -> str:  # noqa: ANN401 - any field
    """JSON without jinja2's HTML escaping."""
    return json.dumps(value, ensure_ascii=False)


def _regex_replace(text: Any, pattern: str, replacement: str = "") -> str:  # noqa: ANN401 - any field
    """Every match of the pattern replaced by the text, which is taken as it stands."""
    held = str(text)
    if _quantifiers(pattern) and len(held) > LONGEST_SEARCH:
        raise FilterArgumentError(f"regex_replace: the text has over {LONGEST_SEARCH} characters")
    if len(held) * len(replacement) > LONGEST:
        raise FilterArgumentError("regex_replace: the replacement is too long")
    try:
        return re.sub(pattern, lambda _: replacement, held)
    except (re.error, OverflowError, RecursionError) as error:
        raise FilterArgumentError(f"regex_replace: {error}") from error


@lru_cache(maxsize=256)
def _quantifiers(pattern: str) -> int:
    """0 or 1: how many quantifiers a pattern has; more have no bound on their time.

    Groups and alternatives are refused for the same reason.
    """
    bare = re.sub(r"\[\^?\]?(?:\\.|[^\]\\])*\]", "C", re.sub(r"\\[^\d]", "E", pattern))
    if re.search(r"[()|]|\\\d", bare):
        raise FilterArgumentError("regex_replace: no groups, alternatives or back references")
    count = len(re.findall(r"(?:[*+?]|\{[^}]*\})[?+]?", bare))
    if count > 1:
        raise FilterArgumentError(
            "regex_replace: one quantifier (* + ? {}) a pattern; use the filter twice"
        )
    return count


@lru_cache(maxsize=1)
def _environment() -> _Environment:
    environment = _Environment(
        undefined=jinja2.StrictUndefined, autoescape=False, finalize=_written
    )
    ours: dict[str, Callable[..., Any]] = {
        "counted": _counted, "join": _join, "replace": _replace, "tojson": _tojson,
        "regex_replace": _regex_replace,
    }  # fmt: skip
    environment.filters = {name: environment.filters[name] for name in FILTERS} | ours
    environment.globals.clear()
    return environment


def _written(value: Any) -> Any:  # noqa: ANN401 - any field
    """A field that holds nothing is written as nothing, not as "None"."""
    return "" if value is None else value
