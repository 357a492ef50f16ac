"""Answers that are lists: entities (`TYPE: text`) and triplets (`head | relation | tail`).

One item a line, or `none`. A parsed list is stored as such lines, so that metrics.items can count
it without a parser. Order and runs of white space make no difference.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mixtune.tasks.metrics import NOTHING, items
from mixtune.tasks.parsers import Parse, Parser

_WORD = re.compile(r"[^\W\d_][\w/-]{0,40}")
_SAYS_NOTHING = re.compile(
    r"\W*(?:there (?:are|is) |i (?:see|found|find) )?(?:none|nothing|n/a|no (?:\w+ ){0,2}"
    r"(?:entit(?:y|ies)|relations?|triplets?|triples?|spans?)(?: \w+){0,4})\W*",
    re.IGNORECASE,
)
_BULLET = re.compile(r"\s*(?:[-*•·]\s+|[0-9]{1,3}[.)]\s+)")


def _list_parser(
    name: str,
    list_metric: str,
    read: Parse,
    read_loose: Parse,
    objects: Callable[[Any, Sequence[str]], Iterator[str]],
) -> Parser:
    """A parser of lists; `read` and `read_loose` take a line, `objects` a part of some JSON."""

    def strict(text: str, labels: Sequence[str] = ()) -> str | None:
        lines = text.strip().splitlines()
        if lines == [NOTHING]:
            return NOTHING
        parsed = [item for line in lines if (item := read(line, labels))]
        return "\n".join(parsed) if parsed and len(parsed) == len(lines) else None

    def lenient(text: str, labels: Sequence[str] = ()) -> str | None:
        exact = strict(text, labels)
        if exact is not None:
            return exact
        values = list(_json_values(text))
        parsed = [item for value in values for item in objects(value, labels)]
        if not parsed:
            parsed = [item for line in text.splitlines() if (item := read_loose(line, labels))]
        if parsed:
            return "\n".join(parsed)
        inner = [part for v in values for part in (v.values() if isinstance(v, dict) else v)]
        empty = values and all(part in ([], {}) for part in inner)  # as `[]` and `{"PER": []}` are
        nothing = empty or _SAYS_NOTHING.fullmatch(text.strip()[:80])
        return NOTHING if nothing else None

    def same(parsed: str, gold: str, turns: Sequence[str] = ()) -> bool:
        return items(parsed) == items(gold)

    return Parser(name, 1, strict, lenient, same, list_metric=list_metric, gold=strict)


def _tidy(text: str) -> str:
    return " ".join(text.split())


def _bare(line: str) -> str:
    """A line without bullet, bold, code and quotation marks, and without a comma at its end."""
    line = line[bullet.end() :] if (bullet := _BULLET.match(line)) else line
    return line.replace("**", "").replace("`", "").strip().strip("\"'").rstrip(",").strip("\"'")


def _known(word: str, labels: Sequence[str]) -> str | None:
    """The declared type or relation that equals a word but for case and underscores."""
    if not labels:
        return word if _WORD.fullmatch(word) else None
    by_fold = {_tidy(label.replace("_", " ")).casefold(): label for label in labels}
    return by_fold.get(_tidy(word.replace("_", " ")).casefold())


# ---- entities -----------------------------------------------------------------------------------


def _span(line: str, types: Sequence[str]) -> str | None:
    """An entity, `TYPE: text`."""
    kind, _, text = line.partition(": ")
    known = kind in types if types else _WORD.fullmatch(kind)
    return f"{kind}: {_tidy(text)}" if known and text.strip() else None


def _loose_span(line: str, types: Sequence[str]) -> str | None:
    """An entity also after a bullet, quoted, as `TYPE - text` or `text (TYPE)`."""
    line = _bare(line)
    first, sign, rest = line.partition(":")
    if not sign and types:
        first, sign, rest = line.partition(" - ")
    kind = _known(first.strip(" \"'"), types) if sign else None
    if kind is not None:
        return _clean_span(kind, rest)
    match = re.fullmatch(r"([^()\n]+)\(([^()\n]+)\)", line) if types else None  # "Acme (ORG)"
    if match is not None:
        kind = _known(match[2], types)
    return _clean_span(kind, match[1]) if match and kind else None


def _clean_span(kind: str, text: str) -> str | None:
    text = _tidy(text).strip("\"'`")
    return None if text.casefold() in ("", "none", "null", "n/a") else f"{kind}: {text}"


def _span_objects(value: Any, types: Sequence[str]) -> Iterator[str]:  # noqa: ANN401 - JSON
    """Spans of `{"type": …, "text": …}`, `{type: text or texts}`, and pairs in either order."""
    pairs: list[tuple[str, Any]] = []
    if isinstance(value, dict):
        kind = _text_at(value, ("type", "label", "entity_type", "category"))
        text = _text_at(value, ("text", "entity", "name", "span", "value"))
        lists = {k: texts if isinstance(texts, list) else [texts] for k, texts in value.items()}
        pairs = [(k, item) for k, texts in lists.items() for item in texts]
        pairs = [(kind, text)] if kind and text else pairs
    elif types and len(value) == 2 and all(isinstance(part, str) for part in value):
        first, second = value
        pairs = [(first, second) if _known(first, types) else (second, first)]
    for kind, text in pairs:
        known = _known(kind, types)
        if known and isinstance(text, str) and (span := _clean_span(known, text)):
            yield span


# ---- triplets -----------------------------------------------------------------------------------


def _triplet(line: str, relations: Sequence[str]) -> str | None:
    """A triplet; head and tail may hold " | " where only one part is a known relation."""
    parts = [_tidy(part) for part in line.split(" | ")]
    middle = [i for i in range(1, len(parts) - 1) if not relations or parts[i] in relations]
    if len(middle) != 1 or "" in parts:
        return None
    place = middle[0]
    head, tail = " | ".join(parts[:place]), " | ".join(parts[place + 1 :])
    return f"{head} | {parts[place]} | {tail}"


def _loose_triplet(line: str, relations: Sequence[str]) -> str | None:
    """A triplet also after a bullet, in a table or in brackets."""
    line = _bare(line)
    parts = [part.strip(" \t\"'") for part in line.strip("| \t").split("|")]
    if len(parts) != 3 and line[:1] in "([<" and line[-1:] in ")]>":
        parts = [part.strip(" \t\"'") for part in line[1:-1].split(",")]
    return _clean_triplet(parts, relations) if len(parts) == 3 else None


def _clean_triplet(parts: Sequence[str], relations: Sequence[str]) -> str | None:
    head, word, tail = parts
    if [part.casefold() for part in parts] == ["head", "relation", "tail"]:
        return None  # the header of a table
    relation = _known(word, relations) if relations else _tidy(word)
    complete = all(re.search(r"\w", part) for part in (head, relation or "", tail))
    return f"{_tidy(head)} | {relation} | {_tidy(tail)}" if complete else None


def _triplet_objects(value: Any, relations: Sequence[str]) -> Iterator[str]:  # noqa: ANN401 - JSON
    keys = (("head", "subject"), ("relation", "predicate", "type"), ("tail", "object"))
    parts = [_text_at(value, names) for names in keys] if isinstance(value, dict) else value
    if len(parts) == 3 and all(isinstance(part, str) and part for part in parts):
        triplet = _clean_triplet(parts, relations)
        if triplet:
            yield triplet


# ---- JSON ---------------------------------------------------------------------------------------


def _json_values(text: str) -> Iterator[Any]:
    """Every object and array of the JSON in an output, outermost first; nothing without JSON."""
    start = min((i for i in (text.find("{"), text.find("[")) if i >= 0), default=-1)
    end = max(text.rfind("}"), text.rfind("]"))
    try:
        # From the first bracket to the last: prose and code fences around it are skipped.
        todo = [json.loads(text[start : end + 1])] if 0 <= start < end else []
    except (ValueError, RecursionError):
        return  # no JSON: parsed line by line
    while todo:
        value = todo.pop()
        if isinstance(value, dict | list):
            yield value
            inner = list(value.values()) if isinstance(value, dict) else value
            todo += reversed(inner)


def _text_at(value: dict[str, Any], names: Sequence[str]) -> str:
    """The text under the first of some names, "" without one."""
    return next((value[name] for name in names if isinstance(value.get(name), str)), "")


SPANS = _list_parser("spans", "span-f1", _span, _loose_span, _span_objects)
TRIPLETS = _list_parser("triplets", "triplet-f1", _triplet, _loose_triplet, _triplet_objects)
