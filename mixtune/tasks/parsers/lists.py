"""Answers that are lists: entities (`TYPE: text`) and triplets (`head | relation | tail`).

One item a line, or `none`. A parsed list is kept as such lines, so that it can be counted later
without a parser (metrics.items). Which order, and how often a space, make no difference.

Knows: lines, tables, JSON. Does not know: tokens, where in a sentence an item stands.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from mixtune.tasks.metrics import NOTHING, items

ReadLine = Callable[[str, Sequence[str]], str | None]

_WORD = re.compile(r"[^\W\d_][\w/-]{0,40}")
_SAYS_NOTHING = re.compile(
    r"\W*(?:there (?:are|is) |i (?:see|found|find) )?(?:none|nothing|n/a|no (?:\w+ ){0,2}"
    r"(?:entit(?:y|ies)|relations?|triplets?|triples?|spans?)(?: \w+){0,4})\W*",
    re.IGNORECASE,
)
_BULLET = re.compile(r"\s*(?:[-*•·]\s+|[0-9]{1,3}[.)]\s+)")


def strict_spans(text: str, labels: Sequence[str] = ()) -> str | None:
    """Entities, if every line is `TYPE: text` with a type that is known (`labels`), or `none`."""
    return _strict(text, labels, _span)


def lenient_spans(text: str, labels: Sequence[str] = ()) -> str | None:
    """Entities from the lines that name one: also behind bullets, quoted, as JSON, `text (TYPE)`.

    Other lines are passed over; types are read in any case.
    """
    return _lenient(text, labels, _span, _loose_span, _span_objects)


def strict_triplets(text: str, labels: Sequence[str] = ()) -> str | None:
    """Triplets, if every line is `head | relation | tail` with a known relation, or `none`."""
    return _strict(text, labels, _triplet)


def lenient_triplets(text: str, labels: Sequence[str] = ()) -> str | None:
    """Triplets from the lines that have one: also in tables, brackets, JSON, behind bullets."""
    return _lenient(text, labels, _triplet, _loose_triplet, _triplet_objects)


def same_items(parsed: str, gold: str, asked: Sequence[str] = ()) -> bool:
    """Whether two lists hold the same items as often, in any order."""
    return items(parsed) == items(gold)


def _strict(text: str, labels: Sequence[str], read: ReadLine) -> str | None:
    lines = text.strip().splitlines()
    if lines == [NOTHING]:
        return NOTHING
    found = [item for item in (read(line, labels) for line in lines) if item is not None]
    return "\n".join(found) if found and len(found) == len(lines) else None


def _lenient(
    text: str,
    labels: Sequence[str],
    read: ReadLine,
    read_loose: ReadLine,
    objects: Callable[[Any, Sequence[str]], Iterator[str]],
) -> str | None:
    exact = _strict(text, labels, read)
    if exact is not None:
        return exact
    found = [item for value in _json_values(text) for item in objects(value, labels)]
    if not found:
        found = [item for line in text.splitlines() if (item := read_loose(line, labels))]
    if found:
        return "\n".join(found)
    return NOTHING if _empty_list(text) or _SAYS_NOTHING.fullmatch(text.strip()[:80]) else None


def _tidy(text: str) -> str:
    return " ".join(text.split())


def _bare(line: str) -> str:
    """A line without what marks it as an item: bullets, bold, code, quotes, a comma behind."""
    line = line[found.end() :] if (found := _BULLET.match(line)) else line
    return line.replace("**", "").replace("`", "").strip().strip("\"'").rstrip(",").strip("\"'")


def _known(word: str, labels: Sequence[str]) -> str | None:
    """A type or relation as it is declared, whatever its case and underscores."""
    if not labels:
        return word if _WORD.fullmatch(word) else None
    return {_folded(label): label for label in labels}.get(_folded(word))


def _folded(word: str) -> str:
    return _tidy(word.replace("_", " ")).casefold()


# ---- entities -----------------------------------------------------------------------------------


def _span(line: str, types: Sequence[str]) -> str | None:
    kind, _, text = line.partition(": ")
    known = kind in types if types else _WORD.fullmatch(kind)
    return f"{kind}: {_tidy(text)}" if known and text.strip() else None


def _loose_span(line: str, types: Sequence[str]) -> str | None:
    line = _bare(line)
    first, sign, rest = line.partition(":")
    if not sign and types:
        first, sign, rest = line.partition(" - ")
    kind = _known(first.strip(" \"'"), types) if sign else None
    if kind is not None:
        return _made_span(kind, rest)
    behind = re.fullmatch(r"([^()\n]+)\(([^()\n]+)\)", line) if types else None
    if behind is not None:
        kind = _known(behind[2], types)
    return _made_span(kind, behind[1]) if behind and kind else None


def _made_span(kind: str, text: str) -> str | None:
    text = _tidy(text).strip("\"'`")
    return None if text.casefold() in ("", "none", "null", "n/a") else f"{kind}: {text}"


def _span_objects(value: Any, types: Sequence[str]) -> Iterator[str]:  # noqa: ANN401 - JSON
    if isinstance(value, dict):
        kind = _text_at(value, ("type", "label", "entity_type", "category"))
        text = _text_at(value, ("text", "entity", "name", "span", "value"))
        if kind and text:
            yield from _spans_of(kind, [text], types)
        else:
            for key, texts in value.items():
                yield from _spans_of(key, texts if isinstance(texts, list) else [texts], types)
    elif isinstance(value, list) and types and len(value) == 2:
        one, two = value
        if isinstance(one, str) and isinstance(two, str):
            kind, text = (one, two) if _known(one, types) else (two, one)
            yield from _spans_of(kind, [text], types)


def _spans_of(kind: str, texts: Iterable[Any], types: Sequence[str]) -> Iterator[str]:
    known = _known(kind, types)
    for text in texts if known else ():
        found = _made_span(known, text) if known and isinstance(text, str) else None
        if found:
            yield found


# ---- triplets -----------------------------------------------------------------------------------


def _triplet(line: str, relations: Sequence[str]) -> str | None:
    """Three parts; a bar within head or tail is theirs where only one part is a known relation."""
    parts = [_tidy(part) for part in line.split(" | ")]
    middle = [i for i in range(1, len(parts) - 1) if not relations or parts[i] in relations]
    if len(middle) != 1 or "" in parts:
        return None
    place = middle[0]
    head, tail = " | ".join(parts[:place]), " | ".join(parts[place + 1 :])
    return f"{head} | {parts[place]} | {tail}"


def _loose_triplet(line: str, relations: Sequence[str]) -> str | None:
    line = _bare(line)
    parts = [part.strip(" \t\"'") for part in line.strip("| \t").split("|")]
    if len(parts) != 3 and line[:1] in "([<" and line[-1:] in ")]>":
        parts = [part.strip(" \t\"'") for part in line[1:-1].split(",")]
    return _made_triplet(parts, relations) if len(parts) == 3 else None


def _made_triplet(parts: Sequence[str], relations: Sequence[str]) -> str | None:
    head, word, tail = parts
    if [part.casefold() for part in parts] == ["head", "relation", "tail"]:
        return None  # the head of a table
    relation = _known(word, relations) if relations else _tidy(word)
    named = all(re.search(r"\w", part) for part in (head, relation or "", tail))
    return f"{_tidy(head)} | {relation} | {_tidy(tail)}" if named else None


def _triplet_objects(value: Any, relations: Sequence[str]) -> Iterator[str]:  # noqa: ANN401 - JSON
    parts: list[Any] = []
    if isinstance(value, dict):
        keys = (("head", "subject"), ("relation", "predicate", "type"), ("tail", "object"))
        parts = [_text_at(value, names) for names in keys]
    elif isinstance(value, list):
        parts = value
    if len(parts) == 3 and all(isinstance(part, str) and part for part in parts):
        found = _made_triplet(parts, relations)
        if found:
            yield found


# ---- JSON ---------------------------------------------------------------------------------------


def _json_values(text: str) -> Iterator[Any]:
    """Every object and array of the JSON that an output holds, outermost first; none otherwise."""
    start = min((i for i in (text.find("{"), text.find("[")) if i >= 0), default=-1)
    end = max(text.rfind("}"), text.rfind("]"))
    try:
        todo = [json.loads(text[start : end + 1])] if 0 <= start < end else []
    except (ValueError, RecursionError):
        return  # no JSON: read line by line
    while todo:
        value = todo.pop()
        if isinstance(value, dict | list):
            yield value
            inner = list(value.values()) if isinstance(value, dict) else value
            todo += reversed(inner)


def _empty_list(text: str) -> bool:
    """Whether the output is JSON that holds no item: `[]`, `{"PER": []}`."""
    found = list(_json_values(text))
    held = [
        inner for value in found for inner in (value.values() if isinstance(value, dict) else value)
    ]
    return bool(found) and all(inner in ([], {}) for inner in held)


def _text_at(value: dict[str, Any], names: Sequence[str]) -> str:
    """The text under the first of some names, "" without one."""
    found = (value[name] for name in names if isinstance(value.get(name), str))
    return next(found, "")
