"""Facts are fields: no code of the package reads them out of a display name or a text.

A system's kind, ingredients, learning rate, strength and the like are fields of the plan's rows and
of `SystemInfo`; whether two systems are tied is a field of an estimate.
"""

import ast
from pathlib import Path

import pytest

import mixtune

CUTTERS = {
    "startswith", "endswith", "partition", "rpartition", "split", "rsplit", "removeprefix",
    "removesuffix", "find", "rfind", "index",
}  # fmt: skip
TEXTS = {
    "cocktail", "method", "origin", "reason", "reference", "sentence", "subject",
    "system", "verdict",
}  # fmt: skip
"""Variables and fields that hold names or sentences for people."""


def parsed_texts(source):
    """Lines on which a name or sentence for people is cut up or searched."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            texts = [node.func.value] if node.func.attr in CUTTERS else []
            texts += node.args if _name(node.func.value) == "re" else []
            if any(_name(text) in TEXTS for text in texts):
                yield node.lineno
        if isinstance(node, ast.Compare) and isinstance(node.left, ast.Constant):
            searches = any(isinstance(operation, (ast.In, ast.NotIn)) for operation in node.ops)
            if searches and any(_name(text) in TEXTS for text in node.comparators):
                yield node.lineno


def _name(node):
    """Last word of a variable or of an attribute."""
    return getattr(node, "attr", None) or getattr(node, "id", None)


def test_no_fact_is_read_out_of_a_name_or_a_text():
    root = Path(mixtune.__file__).parent
    found = [
        f"{path.relative_to(root)}:{line}"
        for path in sorted(root.rglob("*.py"))
        for line in parsed_texts(path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        'row.method.startswith("tie within")',
        'system.cocktail.partition("@")',
        'cocktail.endswith(" (merged)")',
        'row.subject.split("+")',
        're.match(r".* (lr", row.cocktail)',
        '"merged" in info.cocktail',
    ],
)
def test_what_it_looks_for_is_seen(line):
    assert list(parsed_texts(line)) == [1]
