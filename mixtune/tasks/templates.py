"""The prompt templates of task files: jinja2's sandbox, limited so that every rendering ends soon.

A task file may come from anybody. Templates see the record's fields and nothing else; loops run
over fields, a hundred thousand rounds in all. All that could build a long text out of a short one
is missing (`*` on texts, `range`, macros, padding), and a regular expression has one quantifier at
most. The limits count, and measure no time: a template is refused on every machine or on none.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Annotated, Any

import jinja2
import jinja2.meta
from jinja2 import nodes
from jinja2.exceptions import FilterArgumentError, SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import AfterValidator, Field

from mixtune.errors import DataError, shorten

ROUNDS = 100_000
"""Rounds that the loops of one rendering may take, all together."""
MAX_TEXT = 20_000_000
"""Characters of a rendering, or of a value inside it."""
MAX_SEARCHED = 20_000
"""Characters that a pattern with a quantifier is tried on: its time grows with their square."""
MAX_TEMPLATE = 20_000
MAX_COPIES = 200
"""Copies of fields that an expression may hold, counted through `set`, `with` and loops."""

_BUDGET = "rounds left"  # has a space, so that no template can name it

_STATEMENTS = (nodes.Output, nodes.If, nodes.For, nodes.Assign, nodes.With)
_FILTERS = (
    "abs", "capitalize", "count", "default", "first", "float", "int", "items", "last", "length",
    "lower", "round", "string", "title", "trim", "truncate", "upper", "wordcount",
)  # fmt: skip
_METHODS = {
    "strip", "lstrip", "rstrip", "lower", "upper", "title", "capitalize", "casefold", "split",
    "rsplit", "splitlines", "startswith", "endswith", "removeprefix", "removesuffix", "partition",
    "rpartition", "get", "items", "keys", "values", "count", "find", "index", "isdigit", "isalpha",
    "isalnum", "isupper", "islower",
}  # fmt: skip
"""Methods that return nothing longer than their value."""


def check(source: str) -> str:
    """Refuse text that is no template, or that uses what is missing here.

    Raises:
        ValueError: with the line.
    """
    try:
        _template(source)
    except jinja2.TemplateSyntaxError as error:
        message = shorten(error.message or "syntax", 200)
        raise ValueError(f"not a template, line {error.lineno}: {message}") from error
    except (RecursionError, SyntaxError) as error:  # SyntaxError: Python's own limits on nesting
        raise ValueError("not a template: nested too deeply") from error
    return source


Template = Annotated[str, Field(min_length=1), AfterValidator(check)]


@lru_cache(maxsize=1024)
def variables(*sources: str | None) -> frozenset[str]:
    """Names that templates take from outside."""
    parsed = [_ENVIRONMENT.parse(source) for source in sources if source is not None]
    return frozenset().union(*map(jinja2.meta.find_undeclared_variables, parsed))


def render(source: str, values: Mapping[str, Any], where: str) -> str:
    """Render and strip a template.

    Raises:
        DataError: any fault inside it, which is the task file's or the record's.
    """
    parts: list[str] = []
    size = 0
    try:
        template = _template(source)
        # `generate` would merge in the environment's globals, of which there are none.
        context = template.new_context({**values, _BUDGET: [ROUNDS]}, shared=True)
        for part in template.root_render_func(context):
            size += len(part)
            if size > MAX_TEXT:
                raise SecurityError(f"the text gets longer than {MAX_TEXT} characters")
            parts.append(part)
    except (
        jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError,
        RecursionError,
    ) as error:  # fmt: skip
        raise DataError(
            f"the template fails: {shorten(str(error), 300)}",
            where=where,
            remedy="fix the task file or the record",
        ) from error
    return "".join(parts).strip()


def _finalize(value: Any) -> Any:  # noqa: ANN401 - any field
    """A value as it is written: null as nothing, no bytes."""
    if isinstance(value, bytes):
        raise TypeError(f"bytes that are not UTF-8: {shorten(value, 60)}")
    return "" if value is None else value


@lru_cache(maxsize=1024)
def _template(source: str) -> jinja2.Template:
    return _ENVIRONMENT.from_string(source)


class _Environment(ImmutableSandboxedEnvironment):
    """jinja2's sandbox, with bounded operators, loops and filters."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def call_binop(self, context: Any, operator: str, a: Any, b: Any) -> Any:  # noqa: ANN401 - jinja2's own interface
        """An operator that could build something huge, bounded."""
        numbers = isinstance(a, int | float) and isinstance(b, int | float)
        if operator == "**" or (operator in "*%" and not numbers):
            only = "not available" if operator == "**" else "for two numbers only"
            raise SecurityError(f"{operator} is {only}")
        if numbers:
            # Repeated squaring would else double the digits each time.
            if max(abs(a), abs(b)) > 1e15:
                raise SecurityError("a number over 1e15")
        elif len(a) + len(b) > MAX_TEXT:
            raise SecurityError(f"a text gets longer than {MAX_TEXT} characters")
        return super().call_binop(context, operator, a, b)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_TEMPLATE:
            raise jinja2.TemplateSyntaxError(f"over {MAX_TEMPLATE} characters", 1)
        tree = super()._parse(source, name, filename)
        _limit(tree)
        return tree


def _limit(tree: nodes.Template) -> None:
    """Refuse nodes that have no bound, and count the rounds of every loop."""
    copies: dict[str, int] = {}
    for node in tree.find_all(nodes.Node):  # parents first, in the order of the text
        if isinstance(node, nodes.Stmt):
            if not isinstance(node, _STATEMENTS) or getattr(node, "recursive", False):
                word = type(node).__name__.lower()
                message = f"{{% {word} %}} is not available, or not in this form"
                raise jinja2.TemplateSyntaxError(message, node.lineno)
            _count_copies(node, copies)
        if isinstance(node, nodes.Call) and not (
            isinstance(node.node, nodes.Getattr) and node.node.attr in _METHODS
        ):
            called = getattr(node.node, "attr", None) or getattr(node.node, "name", "this")
            raise jinja2.TemplateSyntaxError(f"{called}() is not available", node.lineno)
        if isinstance(node, nodes.For):
            node.iter = nodes.Filter(node.iter, "counted", [], [], None, None, lineno=node.lineno)


def _count_copies(node: nodes.Stmt, copies: dict[str, int]) -> None:
    """Refuse an expression of too many copies of fields; `copies` are those that a name holds.

    Each `{% set a = a ~ a %}` doubles a text, `[a, a]` a list: so a name counts for as many copies
    of fields as its value holds.
    """

    def weight(value: nodes.Node) -> int:
        return sum(copies.get(name, 1) for name in _names(value))

    if any(weight(e) > MAX_COPIES for e in node.iter_child_nodes() if isinstance(e, nodes.Expr)):
        message = f"over {MAX_COPIES} copies of fields in one value"
        raise jinja2.TemplateSyntaxError(message, node.lineno)
    bindings: Iterable[tuple[nodes.Node, nodes.Node]] = ()
    if isinstance(node, nodes.For):
        bindings = [(node.target, node.iter)]
    elif isinstance(node, nodes.Assign):
        bindings = [(node.target, node.node)]
    elif isinstance(node, nodes.With):
        bindings = zip(node.targets, node.values, strict=True)
    for target, value in bindings:
        for name in _names(target):
            # The larger one stays: which branch of an `if` sets a name is not known here.
            copies[name] = max(copies.get(name, 1), weight(value))


def _names(node: nodes.Node) -> Iterator[str]:
    if isinstance(node, nodes.Name):
        yield node.name
    yield from (inner.name for inner in node.find_all(nodes.Name))


@jinja2.pass_context
def _counted(context: jinja2.runtime.Context, items: Iterable[Any]) -> Iterator[Any]:
    """The items of a loop, while rounds are left."""
    budget = context[_BUDGET]
    for item in items:
        budget[0] -= 1
        if budget[0] < 0:
            raise SecurityError(f"the loops take more than {ROUNDS} rounds")
        yield item


def _join(items: Iterable[Any], separator: str = "", attribute: str | None = None) -> str:
    """jinja2's `join`, with a bound."""
    parts: list[str] = []
    size = 0
    for item in items:
        value = item[attribute] if attribute is not None else item
        parts.append(str(_finalize(value)))
        size += len(parts[-1]) + len(separator)
        if size > MAX_TEXT:
            raise FilterArgumentError(f"join: longer than {MAX_TEXT} characters")
    return separator.join(parts)


def _replace(value: Any, old: str, new: str) -> str:  # noqa: ANN401 - any field
    """jinja2's `replace`, with a bound."""
    text = str(value)
    # An empty `old` matches between all characters; counting is only needed for long results.
    if len(text) * len(new) > MAX_TEXT and text.count(old) * len(new) > MAX_TEXT:
        raise FilterArgumentError(f"replace: longer than {MAX_TEXT} characters")
    return text.replace(old, new)


def _tojson(value: Any) -> str:  # noqa: ANN401 - any field
    """JSON without jinja2's HTML escaping, and without its `indent`, which has no bound."""
    return json.dumps(value, ensure_ascii=False)


def _regex_replace(value: Any, pattern: str, replacement: str = "") -> str:  # noqa: ANN401 - any field
    """Every match of the pattern replaced by a literal text."""
    text = str(value)
    if _quantifiers(pattern) and len(text) > MAX_SEARCHED:
        raise FilterArgumentError(f"regex_replace: the text has over {MAX_SEARCHED} characters")
    if len(text) * len(replacement) > MAX_TEXT:
        raise FilterArgumentError("regex_replace: the replacement is too long")
    try:
        return re.sub(pattern, lambda _: replacement, text)
    except (re.error, OverflowError, RecursionError) as error:
        raise FilterArgumentError(f"regex_replace: {error}") from error


@lru_cache(maxsize=256)
def _quantifiers(pattern: str) -> int:
    """The number of quantifiers of a pattern, 0 or 1: with more its time has no bound.

    Groups and alternatives are refused for the same reason.
    """
    # Classes and escapes become letters: "*" in a class is no quantifier. Back references stay.
    bare = re.sub(r"\[\^?\]?(?:\\.|[^\]\\])*\]", "C", re.sub(r"\\[^\d]", "E", pattern))
    if re.search(r"[()|]|\\\d", bare):
        raise FilterArgumentError("regex_replace: no groups, alternatives or back references")
    count = len(re.findall(r"(?:[*+?]|\{[^}]*\})[?+]?", bare))
    if count > 1:
        raise FilterArgumentError(
            "regex_replace: one quantifier (* + ? {}) a pattern; use the filter twice"
        )
    return count


_ENVIRONMENT = _Environment(
    undefined=jinja2.StrictUndefined,
    autoescape=False,
    finalize=_finalize,
)
_ENVIRONMENT.globals.clear()
_ENVIRONMENT.filters = {name: _ENVIRONMENT.filters[name] for name in _FILTERS} | {
    "counted": _counted, "join": _join, "replace": _replace, "tojson": _tojson,
    "regex_replace": _regex_replace,
}  # fmt: skip
