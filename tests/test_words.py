"""Names and docstrings say what a thing is: no pointer words, no openings that ask, no bare tuples.

The limits are close to what the code has; they may only go down.
"""

import ast
import re
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "mixtune"
POINTERS = frozenset(
    """
    found made kept said told held given taken meant wanted asked got gone sent put left over beside
    there here thing things one ones other others what which spoken heard came brought aside
    spent
    """.split()  # noqa: SIM905 - a list of words
)
OPENINGS = re.compile(r"(What|Whether|Where|How|Which|Who|So many|So)\b")

LARGEST_SHARE_OF_POINTERS = 0.002
MOST_OPENINGS = 1
MOST_TUPLES = 0


def trees():
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path, ast.parse(path.read_text(encoding="utf-8"))


def assigned_names():
    """(where, name) of every name that is assigned or is a parameter."""
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield f"{path}:{node.lineno}", node.id
            elif isinstance(node, ast.arg):
                yield f"{path}:{node.lineno}", node.arg


def test_values_are_named_for_what_they_are():
    names = list(assigned_names())
    pointers = [(where, name) for where, name in names if name in POINTERS]
    common = Counter(name for _, name in pointers).most_common(5)
    assert len(pointers) <= LARGEST_SHARE_OF_POINTERS * len(names), (common, pointers[:5])


def test_docstrings_do_not_open_with_a_question_word():
    kinds = ast.Module | ast.ClassDef | ast.FunctionDef
    openings = [
        f"{path}: {text.splitlines()[0]}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, kinds) and OPENINGS.match(text := ast.get_docstring(node) or "")
    ]
    assert len(openings) <= MOST_OPENINGS, openings[:5]


def unlike_tuple(annotation):
    """The annotation of a parameter that is a bare tuple of unlike things, or None."""
    if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "tuple"):
        return None
    parts = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else []
    texts = {ast.unparse(part) for part in parts}
    return ast.unparse(annotation) if len(texts) > 1 and "..." not in texts else None


def test_parameters_of_unlike_parts_are_classes():
    tuples = [
        f"{path}:{node.lineno} {node.arg}: {text}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.arg) and (text := unlike_tuple(node.annotation))
    ]
    assert len(tuples) <= MOST_TUPLES, tuples[:5]
