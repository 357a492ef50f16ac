"""A file of rows → a task YAML to start from.

Knows: what columns are usually called, the row forms. Does not know: what the rows are about.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from mixtune.errors import DataError, shorten
from mixtune.tasks.files import Row, read_rows
from mixtune.tasks.parsers import fold
from mixtune.tasks.places import ending

LOOKED_AT = 20_000
"""Rows that are looked at."""
MOST_LABELS = 50

_TEXTS = ("text", "sentence", "content", "message", "body", "review", "title", "question", "input")
_LABELS = ("label", "labels", "category", "class", "topic", "intent", "sentiment", "tag", "target")
_PAIRS = (("question", "answer"), ("input", "output"), ("question", "response"), ("text", "target"))


@dataclass(frozen=True, slots=True)
class Starter:
    """What was found, in a sentence, and the task YAML."""

    found: str
    text: str


def starter(path: Path, taken: Container[str] = (), folder: Path | None = None) -> Starter:
    """Look at a file of rows and write the task YAML that fits them.

    `taken`: names that the task cannot have. `folder`: where the YAML will lie, if not beside the
    rows.

    Raises:
        DataError: the file cannot be read, has no rows, or its columns fit no form.
    """
    rows = list(islice(read_rows(path, _leave_out), LOOKED_AT))
    if not rows:
        raise DataError("the file has no rows to look at", where=shorten(str(path), 300))
    stem = path.name.removesuffix(ending(path.name) or "").lower()
    name = re.sub(r"[^a-z0-9]+", "-", stem)[:60].strip("-") or "task"
    name = f"own-{name}" if name in taken else name
    source = os.path.relpath(path, folder or path.parent)
    found, lines = _form(rows, path)
    head = [f"name: {_quoted(name)}", *lines, f"source: {_quoted(source)}"]
    return Starter(found, "\n".join(head) + "\n")


def _leave_out(fault: DataError) -> None:
    """The check that follows reports the row."""


def _form(rows: Sequence[Row], path: Path) -> tuple[str, list[str]]:
    first = rows[0].record
    for field in ("messages", "conversations"):
        if isinstance(first.get(field), list):
            return _conversation(field, first[field])
    if {"instruction", "output"} <= first.keys():
        return "alpaca rows (instruction, input, output)", ["format: alpaca"]
    if {"prompt", "completion"} <= first.keys():
        return "prompt and completion", ["format: prompt-completion"]
    label = _label_column(rows)
    text = _text_column(rows, label)
    if label is not None and text is not None:
        return _labelled(rows, text, label)
    for asked, told in _PAIRS:
        if {asked, told} <= first.keys():
            prompt = [
                "prompt: |-",
                f"  {{{{ {asked} }}}}",
                f"target: {_quoted(f'{{{{ {told} }}}}')}",
            ]
            return f"open answers: {asked} and {told}", prompt
    raise DataError(
        "the columns fit no form that is known",
        where=shorten(str(path), 300),
        found=", ".join(map(str, first)),
        wanted="a text and a label with few values; instruction and output; prompt and completion; "
        "messages; conversations",
        remedy="write a task YAML with a prompt that names your columns (docs/your-own-task.md)",
    )


def _conversation(field: str, turns: list[Any]) -> tuple[str, list[str]]:
    named = turns[0] if turns and isinstance(turns[0], Mapping) else {}
    form = "sharegpt" if "from" in named else "messages"
    usual = {"sharegpt": "conversations", "messages": "messages"}[form]
    columns = [] if field == usual else [f"columns: {{messages: {field}}}"]
    return f"conversations in {field} ({form})", [f"format: {form}", *columns]


def _label_column(rows: Sequence[Row]) -> str | None:
    """The column that holds few values, again and again."""
    fit = []
    for name in rows[0].record:
        values = [row.record.get(name) for row in rows]
        kinds = all(isinstance(v, str | int) and str(v).strip() for v in values)
        distinct = len({str(v).strip() for v in values}) if kinds else 0
        if 2 <= distinct <= min(MOST_LABELS, len(rows) // 2):
            fit.append((name.lower() not in _LABELS, distinct, name))
    return min(fit)[2] if fit else None


def _text_column(rows: Sequence[Row], label: str | None) -> str | None:
    """The column with the longest texts, those with a usual name before others."""
    size: Counter[str] = Counter()
    for row in rows:
        size.update({k: len(v) for k, v in row.record.items() if isinstance(v, str) and k != label})
    fit = [(name.lower() in _TEXTS, total, name) for name, total in size.items() if total]
    return max(fit)[2] if fit else None


def _labelled(rows: Sequence[Row], text: str, label: str) -> tuple[str, list[str]]:
    counts = Counter(_written(row.record[label]) for row in rows)
    # The commonest spelling is the label; others differ from it by case or spacing alone.
    chosen: dict[str, str] = {}
    for value, _ in counts.most_common():
        chosen.setdefault(fold(value), value)
    labels = sorted(chosen.values())
    others = [f"{_quoted(v)}: {_quoted(chosen[fold(v)])}" for v in sorted({*counts} - {*labels})]
    begins = any(b.startswith(a) for a, b in pairwise(sorted(chosen)))
    # A template can name the usual columns; another name may mean something else in it.
    shown = text if text in _TEXTS else "content" if label == "text" else "text"
    lines = [
        f"labels: [{', '.join(map(_quoted, labels))}]",
        *(["allow_prefix_labels: true  # one label begins like another"] if begins else []),
        "prompt: |-",
        "  Which of these fits the text? Answer with one of: {{ labels | join(', ') }}.",
        "",
        f"  {{{{ {shown} }}}}",
        f"fields: {{label: {_quoted(label)}}}",
        *([f"label_values: {{{', '.join(others)}}}"] if others else []),
        *([f"columns: {{{shown}: {_quoted(text)}}}"] if shown != text else []),
    ]
    return f"text in {shorten(text)}, one of {len(labels)} labels in {shorten(label)}", lines


def _written(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def _quoted(text: str) -> str:
    """A YAML string: JSON's, with escapes for all that cannot be seen."""
    written = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in written)
