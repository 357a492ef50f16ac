"""Chat templates: jinja2 as transformers runs them, bounded in steps and in the size of values.

A template is a stranger's program. The sandbox keeps it from files and objects, not from loops
without end: each pass of a loop is a step, and a rendering has a million of them.
"""

import json
import re
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from mixtune.errors import ModelError

TODAY = datetime(2024, 7, 26)  # noqa: DTZ001 - a calendar day, in no time zone
"""The date that templates are given. Fixed: a prompt that changes overnight changes results without
changing their id. (It is the date that Llama 3's template falls back to.)"""

MOST_STEPS = 1_000_000
"""Passes of loops in one rendering: about a second."""
LARGEST = 1_000_000
"""Characters or entries that an operator may make of a shorter value, and digits of a power."""
_WIDTH = re.compile(r"%[^a-zA-Z%]*\d{6}")

FAILURES = (
    jinja2.TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a template may raise."""


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox, with counted loops."""

    intercepted_binops = frozenset({"*", "**", "%"})
    steps = 0

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for loop in tree.find_all(nodes.For):
            counted = nodes.Filter(loop.iter, "mixtune_counted", [], [], None, None)
            loop.iter = counted.set_lineno(loop.lineno).set_environment(self)
        return tree

    def counted(self, values: Iterable[Any]) -> Iterator[Any]:
        """The values of a loop, as long as there are steps left."""
        for value in values:
            self.steps += 1
            if self.steps > MOST_STEPS:
                raise jinja2.TemplateError(f"more than {MOST_STEPS:,} passes of loops")
            yield value

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:  # noqa: ANN401
        if _too_large(operator, left, right):
            raise jinja2.TemplateError(f"a value of more than {LARGEST:,} parts")
        return super().call_binop(context, operator, left, right)


def _too_large(operator: str, left: Any, right: Any) -> bool:  # noqa: ANN401
    """True if an operator would make a huge value of small ones."""
    if operator == "%":
        return isinstance(left, str) and _WIDTH.search(left) is not None
    if operator == "**":
        numbers = isinstance(left, int) and isinstance(right, int)
        return numbers and abs(right) * max(abs(left), 1).bit_length() > LARGEST
    sized = [side for side in (left, right) if isinstance(side, str | bytes | list | tuple)]
    times = [side for side in (left, right) if isinstance(side, int)]
    return bool(sized and times) and len(sized[0]) * times[0] > LARGEST


class ChatTemplate:
    """A compiled chat template."""

    def __init__(self, source: str) -> None:
        """Compile it.

        Raises:
            ModelError: it does not compile.
        """
        self._environment = environment = _Environment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.filters["mixtune_counted"] = environment.counted
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = TODAY.strftime
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            problem = f"the chat template does not compile: {error}"
            raise ModelError(problem, found=source) from error

    def render(self, **values: Any) -> str:  # noqa: ANN401 - what templates are given
        """The text for some values; one of FAILURES where the template fails."""
        self._environment.steps = 0
        return self._template.render(**values)


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}`, which marks an assistant's text: left as it is."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's own interface

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:  # noqa: ANN401 - JSON
    """JSON without jinja2's HTML escaping, which prompts must not have."""
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
