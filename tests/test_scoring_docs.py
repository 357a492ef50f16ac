"""docs/scoring.md: every example in its tables is so, and every parser and metric is in it."""

import re
from pathlib import Path

import pytest

from mixtune.tasks.metrics import METRICS
from mixtune.tasks.parsers.labels import PARSERS

PAGE = (Path(__file__).parent.parent / "docs/scoring.md").read_text(encoding="utf-8")
WORDS = {
    "label": ("negative", "neutral", "positive"),
    "spans": ("PER", "ORG"),
    "triplets": ("owned_by",),
}


def tables():
    """(parser, header, cells) of every row in the sections of parsers."""
    for name, section in re.findall(r"^### `([a-z-]+)`\n(.*?)(?=^##|\Z)", PAGE, re.M | re.S):
        header = ()
        for line in section.splitlines():
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not line.startswith("|"):
                header = ()
            elif not header:
                header = tuple(cells)
            elif not cells[0].startswith("---"):
                yield name, header, tuple(map(shown, cells))


def shown(cell):
    text = cell.replace("\\|", "|").replace("⏎", "\n")
    return None if text == "–" else text[1:-1] if text.startswith("`") else text


ROWS = list(tables())


@pytest.mark.parametrize(("name", "header", "cells"), ROWS)
def test_examples_are_so(name, header, cells):
    parser = PARSERS[name]
    if header == ("output", "strict", "lenient"):
        output, *read = cells
        known = WORDS.get(name, ())
        assert [parser.strict(output, known), parser.lenient(output, known)] == read
    else:
        assert header == ("answer", "gold", "question", "right")
        output, gold, question, right = cells
        parsed = parser.lenient(output, ())
        assert (parsed is not None and parser.same(parsed, gold, [question])) is (right == "yes")


def test_every_parser_and_metric_is_in_it():
    assert {name for name, _, _ in ROWS} == set(PARSERS)
    assert all(f"`{name}`" in PAGE for name in METRICS)
