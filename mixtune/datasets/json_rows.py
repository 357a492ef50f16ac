"""Rows of JSON files: an object a line, a list, columns, or rows in one key of an object."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from mixtune.datasets.tables import check_names
from mixtune.datasets.text_files import (
    LONGEST_LINE,
    Fault,
    Form,
    Row,
    byte_lines,
    decode,
    first_lines,
    name_of,
    whole_text,
)
from mixtune.errors import DataError, shorten
from mixtune.tasks.source_spec import kind_of

_TURNS = ("messages", "conversations", "conversation", "turns", "history", "dialog", "dialogue")
"""Keys of one conversation: their objects are turns, not rows."""
_NO_VALUE = " is not a JSON value"


def is_json_lines(path: Path, encoding: str | None) -> bool:
    """True for a file with an object a line; others are one JSON value."""
    first, second = first_lines(path, encoding)
    if kind_of(path.name) == ".json":
        return first.startswith("{") and first.rstrip().endswith("}") and second.startswith("{")
    # A list of objects, on one line or over several.
    whole = first.startswith("[") and first[1:].lstrip()[:1] in ("", "{")
    return not whole or second.startswith("[")


def json_lines(path: Path, encoding: str | None, fault: Fault) -> Iterator[Row]:
    """The objects of a JSON-lines file; blank lines are not records."""
    number = 0
    for where, line in byte_lines(path, encoding):
        if not line.strip():
            continue
        try:
            text = decode(line, where, path)
            yield Row(where, number, _checked(_parse_json(text, where), "\\u" in text, where))
        except DataError as error:
            fault(error)
        number += 1


class Rows(NamedTuple):
    """The records of one JSON value, yet to be checked, and the form that they have there."""

    records: Sequence[object]
    form: Form


def json_value(path: Path, encoding: str | None) -> tuple[Rows, str]:
    """The rows of a file that is one JSON value, and its text.

    Raises:
        DataError: not JSON, or of no form that has rows.
    """
    where = name_of(path)
    text = whole_text(path, encoding)
    if text.lstrip()[:1] not in ("[", "{"):
        raise _no_rows(text, where)
    value = _parse_json(text, where)
    rows = _rows_of(value, where)
    if rows is None:
        raise _no_rows(text, where)
    plain = isinstance(value, list) and kind_of(path.name) == ".json"
    return rows._replace(form=Form(rows.form.text, plain)), text


def json_rows(path: Path, rows: Rows, text: str, fault: Fault) -> Iterator[Row]:
    """The rows of a JSON value; `text`: that of the whole file."""
    where, escaped, large = name_of(path), "\\u" in text, len(text) > LONGEST_LINE
    for number, record in enumerate(rows.records):
        place = f"{where}, row {number + 1}"
        # Only a text of more than LONGEST_LINE can hold a record of that size.
        if large and len(json.dumps(record, ensure_ascii=False)) > LONGEST_LINE:
            problem, length = "the record is too long", f"over {LONGEST_LINE} characters"
            raise DataError(problem, where=place, found=length, remedy="fix or remove the record")
        try:
            yield Row(place, number, _checked(record, escaped, place))
        except DataError as error:
            fault(error)


def has_rows(path: Path) -> bool:
    """True for a .json file of rows; False for one that is no JSON or has another form."""
    if is_json_lines(path, None) or first_lines(path, None)[0].startswith("["):
        return True
    try:
        return bool(json_value(path, None)[0].records)
    except DataError:
        return False


def _no_rows(text: str, where: str) -> DataError:
    return DataError(
        "the file is not a JSON list",
        where=where,
        found=text.strip()[:200] or "an empty file",
        wanted='[{"field": value, …}, …], {"field": [value, …], …} or {"data": [{…}, …]}',
        remedy="put the objects in a list, or one on each line",
    )


# ---- one JSON value -----------------------------------------------------------------------------


def _rows_of(value: object, where: str) -> Rows | None:
    """The rows of a list, or of an object that holds them as other programs write them."""
    if isinstance(value, list):
        return Rows(value, Form("one JSON list", True))
    if not isinstance(value, dict) or not value:
        return None
    if {"columns", "data"} <= value.keys() <= {"columns", "index", "data"}:
        return _split_columns(value, where)
    lists = {key: items for key, items in value.items() if isinstance(items, list)}
    tables = [key for key, items in lists.items() if items and _all_objects(items)]
    equal = len({len(items) for items in lists.values()}) == 1
    if len(lists) == len(value) > len(tables) and (equal or not tables):
        return _columns(lists, where)
    if tables:
        return _wrapped(value, tables, where)
    if _all_objects(list(value.values())):
        return _objects(value)
    return None


def _all_objects(values: Sequence[object]) -> bool:
    return all(isinstance(value, dict) for value in values)


def _columns(lists: Mapping[str, list[Any]], where: str) -> Rows:
    """Rows of an object with a list for each column."""
    lengths = {len(items) for items in lists.values()}
    if len(lengths) > 1:
        sizes = ", ".join(f"{key}: {len(items)}" for key, items in lists.items())
        raise DataError(
            "columns of different lengths",
            where=where,
            found=sizes,
            wanted="a value of each column for each row",
            remedy="write the rows as a list of objects",
        )
    records = [
        dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)
    ]
    return Rows(records, Form("JSON by columns", False))


def _split_columns(value: Mapping[str, Any], where: str) -> Rows | None:
    """Rows of pandas' orient="split": names once, then a list for each row."""
    names, rows = value["columns"], value["data"]
    if not isinstance(names, list) or not isinstance(rows, list):
        return None
    names = list(map(str, names))
    check_names(names, where)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, list) or len(row) != len(names):
            raise DataError(
                "the row has another number of values than there are columns",
                where=f"{where}, row {number}",
                found=row,
                wanted=f"a list of {len(names)}: {shorten(', '.join(names))}",
                remedy="write the rows as a list of objects",
            )
    records = [dict(zip(names, row, strict=True)) for row in rows]
    return Rows(records, Form("JSON with the names of columns apart", False))


def _wrapped(value: Mapping[str, Any], tables: Sequence[str], where: str) -> Rows | None:
    """Rows in the one key of an object that holds a list of objects."""
    if len(tables) > 1:
        raise DataError(
            "several lists of rows",
            where=where,
            found=", ".join(tables),
            wanted="one list of rows",
            remedy="write each list to a file of its own, and name it under source",
        )
    key = tables[0]
    if key in _TURNS:
        return None
    rest = [name for name in value if name != key]
    unread = f", not read: {shorten(', '.join(rest))}" if rest else ""
    return Rows(value[key], Form(f"rows in {shorten(key)!r}{unread}", False))


def _objects(value: Mapping[str, Mapping[str, Any]]) -> Rows | None:
    """Rows of pandas' orient="columns" or "index": an object of objects with the same keys."""
    inner = list(next(iter(value.values())))
    if not inner or any(list(item) != inner for item in value.values()):
        return None
    numbers = [all(key.isdigit() for key in keys) for keys in (value, inner)]
    if numbers == [False, True]:
        records = [{name: items[key] for name, items in value.items()} for key in inner]
        return Rows(records, Form("JSON by columns", False))
    if numbers == [True, False]:
        return Rows(list(value.values()), Form("JSON by index", False))
    return None


# ---- records ------------------------------------------------------------------------------------


def _parse_json(text: str, where: str) -> Any:  # noqa: ANN401 - any JSON value
    """A line of .jsonl, or a whole .json file."""
    try:
        return _DECODER.decode(text)
    # RecursionError: brackets nested too deeply. ValueError: also of the decoder's two hooks.
    except (ValueError, RecursionError) as error:
        position = error.pos if isinstance(error, json.JSONDecodeError) else 0
        raise DataError(
            f"not valid JSON: {shorten(str(error), 200)}",
            where=where,
            found=text[max(0, position - 60) : position + 60].strip(),
            wanted="one JSON object a line in .jsonl, a list of objects in .json",
            remedy="write null where a value is missing"
            if str(error).endswith(_NO_VALUE)
            else "fix or remove the record; if the file breaks off, copy it again",
        ) from error


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant}{_NO_VALUE}")


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return record


_DECODER = json.JSONDecoder(
    parse_constant=_refuse_constant, object_pairs_hook=_refuse_repeated_keys
)


def _checked(record: object, escaped: bool, where: str) -> dict[str, Any]:
    """A record that is an object; `escaped`: its text has escapes, so may hold lone surrogates."""
    if not isinstance(record, dict):
        raise DataError(
            "the record is not a JSON object",
            where=where,
            found=json.dumps(record, ensure_ascii=False),
            wanted='{"field": value, …}',
            remedy="one object a line in .jsonl; a list of objects in .json",
        )
    for field, value in record.items() if escaped else ():
        try:
            json.dumps([field, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            # Half of a character that needs two escapes could not be written as UTF-8 later.
            raise DataError(
                "half an escaped character (a lone surrogate)",
                where=f"{where}: field {field.encode(errors='replace').decode()!r}",
                found=repr(value),
                wanted="text that UTF-8 can hold",
                remedy="fix the escape sequence",
            ) from error
    return record
