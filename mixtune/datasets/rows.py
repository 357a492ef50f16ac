"""Read the rows of a file: CSV, TSV, JSON lines (gzipped too), a JSON list, parquet.

A bad row is passed to `fault`, which raises it by default; a caller that collects faults gets the
other rows. A fault of the whole file is always raised.
"""

import csv
import gzip
import json
import zlib
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from mixtune.errors import DataError, did_you_mean, shorten
from mixtune.tasks.source_spec import ENDINGS, ending

LONGEST_LINE = 10_000_000
"""Bytes that one line of a file may have, characters that one record of a JSON list may have."""
LARGEST_LIST = 500_000_000
"""Bytes that a JSON list may have: it is read whole."""

Fault = Callable[[DataError], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One record, where it is (for messages) and its number from 0.

    `question`: the one question that a row is about, for sources that have a row per question.
    """

    where: str
    number: int
    record: Mapping[str, Any]
    question: str | None = None


def refuse(fault: DataError) -> None:
    """Raise it: no row may be bad."""
    raise fault


def read_rows(path: Path, fault: Fault = refuse) -> Iterator[Row]:
    """The records of a file in stored order.

    Row.where is `file:line`; `file, row n` in a JSON list or parquet.

    Raises:
        DataError: no such file, a folder, an unknown ending, an unreadable file, a wrong encoding,
            a header without names; and, through `fault`, rows that cannot be read.
    """
    _check_file(path)
    kind = ending(path.name)
    try:
        if kind == ".parquet":
            yield from _parquet_rows(path)
        elif kind in (".csv", ".tsv"):
            yield from _csv_rows(path, fault)
        elif kind == ".json" and not _has_object_per_line(path):
            yield from _list_rows(path, fault)
        else:
            yield from _jsonl_rows(path, fault)
    except (OSError, EOFError, zlib.error) as error:
        problem = f"cannot read the file: {shorten(str(error), 200)}"
        raise DataError(problem, where=_name(path), remedy="copy the file again") from error


def is_rows(path: Path) -> bool:
    """True for a file of rows; a .json file is one if it is a list or has an object per line."""
    kind = ending(path.name)
    if kind != ".json" or not path.is_file():
        return kind not in (None, ".json")
    return _has_object_per_line(path) or _first_lines(path)[0].startswith(b"[")


def _has_object_per_line(path: Path) -> bool:
    """True for a .json file that is JSON lines, as other tools write it."""
    return all(line.startswith(b"{") for line in _first_lines(path))


def _first_lines(path: Path) -> list[bytes]:
    """The first two lines that are not blank; empty ones where there are fewer."""
    with path.open("rb") as file:
        lines = (line for line in iter(lambda: file.readline(LONGEST_LINE), b"") if line.strip())
        return [next(lines, b"").removeprefix(BOM_UTF8).lstrip(), next(lines, b"")]


def _name(path: Path) -> str:
    return shorten(str(path), 300)


def _check_file(path: Path) -> None:
    where = _name(path)
    if path.is_dir():
        raise DataError("this is a folder, not a file", where=where, remedy="name the file in it")
    if not path.is_file():
        names = path.parent.is_dir() and [p.name for p in path.parent.iterdir() if ending(p.name)]
        remedy = did_you_mean(path.name, names) if names else "check the path"
        raise DataError("no such file", where=where, remedy=remedy)
    if ending(path.name) is None:
        endings = ", ".join(ENDINGS)
        raise DataError("rows are not read from files of this kind", where=where, wanted=endings)


# ---- lines and their encoding -------------------------------------------------------------------


def _lines(file: BinaryIO, path: Path) -> Iterator[tuple[str, bytes]]:
    """`file:line` and the line; bounded, so that a file without line ends cannot fill memory."""
    for number, body in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
        where = f"{_name(path)}:{number}"
        if len(body) > LONGEST_LINE:
            size, expected = f"over {LONGEST_LINE} bytes", "a record a line, UTF-8"
            remedy = "check the file's format; one large JSON list ends in .json"
            problem = "the line is too long"
            raise DataError(problem, where=where, found=size, wanted=expected, remedy=remedy)
        yield where, body.removeprefix(BOM_UTF8) if number == 1 else body


def _decode(body: bytes, where: str) -> str:
    try:
        if b"\0" not in body and not body.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
            return body.decode("utf-8")
        reason, near = "NUL bytes: UTF-16, or no text at all", body[:40]
    except UnicodeDecodeError as error:
        near = body[max(0, error.start - 20) : error.start + 20]
        reason = f"{error.reason} at byte {error.start} of the line"
    remedy = "convert the file, for example with iconv -f LATIN1 -t UTF-8"
    problem = f"wrong encoding: {reason}"
    raise DataError(problem, where=where, found=repr(near), wanted="UTF-8", remedy=remedy)


# ---- JSON ---------------------------------------------------------------------------------------


def _jsonl_rows(path: Path, fault: Fault) -> Iterator[Row]:
    """The objects of a JSON-lines file, plain or gzipped; blank lines are not records."""
    number = 0
    with cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb") as file:
        for where, line in _lines(file, path):
            if not line.strip():
                continue
            try:
                text = _decode(line, where)
                yield Row(where, number, _checked(_parse_json(text, where), "\\u" in text, where))
            except DataError as error:
                fault(error)
            number += 1


def _list_rows(path: Path, fault: Fault) -> Iterator[Row]:
    """The objects of one JSON list."""
    where, size = _name(path), path.stat().st_size
    if size > LARGEST_LIST:
        raise DataError(
            "the JSON list is too large",
            where=where,
            found=f"{size} bytes",
            wanted=f"at most {LARGEST_LIST} bytes",
            remedy="convert it to JSON lines, for example with jq -c '.[]'",
        )
    text = _decode(path.read_bytes().removeprefix(BOM_UTF8), where)
    if not text.lstrip().startswith("["):
        start, expected = text.strip()[:200] or "an empty file", '[{"field": value, …}, …]'
        problem = "the file is not a JSON list"
        remedy = "put the objects in a list, or one on each line"
        raise DataError(problem, where=where, found=start, wanted=expected, remedy=remedy)
    records = _parse_json(text, where)
    escaped = "\\u" in text
    del text
    for number, record in enumerate(records):
        place = f"{where}, row {number + 1}"
        # Only a file of more than LONGEST_LINE can hold a record of that size.
        if size > LONGEST_LINE and len(json.dumps(record, ensure_ascii=False)) > LONGEST_LINE:
            problem, length = "the record is too long", f"over {LONGEST_LINE} characters"
            raise DataError(problem, where=place, found=length, remedy="fix or remove the record")
        try:
            yield Row(place, number, _checked(record, escaped, place))
        except DataError as error:
            fault(error)


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
            remedy="fix or remove the record; if the file breaks off, copy it again",
        ) from error


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")


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


# ---- tables -------------------------------------------------------------------------------------


def _csv_rows(path: Path, fault: Fault) -> Iterator[Row]:
    """The rows of a CSV or TSV file, under the names in its first line."""
    separator = "\t" if ending(path.name) == ".tsv" else ","
    with path.open("rb") as file:
        lines = (_decode(line, where) for where, line in _lines(file, path))
        if _has_no_quoting(path):
            reader = csv.reader(lines, delimiter=separator, quoting=csv.QUOTE_NONE, strict=True)
        else:
            reader = csv.reader(lines, delimiter=separator, strict=True)
        rows = _csv_cells(reader, path)
        place, header = next(rows, (_name(path), []))
        names = _column_names(header, place, separator)
        for number, (place, cells) in enumerate(rows):
            if len(cells) == len(names):
                yield Row(place, number, dict(zip(names, cells, strict=True)))
                continue
            error = DataError(
                "the row has another number of cells than the first line",
                where=place,
                found=f"{len(cells)} cells: {shorten(', '.join(cells))}",
                wanted=f"{len(names)} cells: {shorten(', '.join(names))}",
                remedy="put cells that hold the separator in quotes, or fix the row",
            )
            fault(error)


def _has_no_quoting(path: Path) -> bool:
    """True for a TSV file whose quotes are characters of its texts, as the whole file shows.

    Each line alone has a cell for every column, the names have no quotes, and as quoting the
    quotes would join lines or be invalid.
    """
    # A cell of a CSV file may hold a line that ends in a comma: its lines alone show nothing.
    if ending(path.name) != ".tsv":
        return False
    with path.open("rb") as file:
        bodies = [body for _, body in _lines(file, path) if body.strip()]
    tabs = {body.count(b"\t") for body in bodies}
    if len(tabs) != 1 or tabs == {0} or bodies[0].startswith(b'"'):  # Names in quotes: quoting.
        return False
    reader = csv.reader(
        (body.decode("utf-8", "replace") for body in bodies), "excel-tab", strict=True
    )
    try:
        return sum(1 for _ in reader) != len(bodies)
    except csv.Error:
        return True


def _csv_cells(reader: Any, path: Path) -> Iterator[tuple[str, list[str]]]:  # noqa: ANN401 - a csv.reader
    """`file:line` and the cells of each row that is not blank."""
    place = f"{_name(path)}:1"
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield place, cells
            place = f"{_name(path)}:{reader.line_num + 1}"
    except csv.Error as error:
        raise DataError(
            f"not valid CSV: {error}",
            where=place,
            wanted='a cell that holds commas, quotes or line ends is in "quotes", quotes in it are '
            'doubled (""), and it has at most 131,072 characters',
            remedy="fix the row; a quote that is not closed swallows the rows behind it",
        ) from error


def _column_names(header: Sequence[str], where: str, separator: str) -> list[str]:
    names = [cell.strip() for cell in header]
    expected = "a first line with the names of the columns, each once"
    if not names:
        remedy = "copy the file again"
        raise DataError("the file is empty", where=where, wanted=expected, remedy=remedy)
    if len(names) == 1 and any(sign in names[0] for sign in ";\t,|"):
        raise DataError(
            "one column only: the cells seem to be separated by another sign",
            where=where,
            found=names[0],
            wanted="commas in .csv, tabs in .tsv",
            remedy="save the file again with that separator",
        )
    _check_names(names, where)
    for name in names:
        if len(name) > 100 or "\n" in name or name.replace(".", "").isdigit():
            problem = "the first line does not look like column names"
            remedy = f"put a line such as text{separator}label first"
            raise DataError(problem, where=where, found=name, wanted=expected, remedy=remedy)
    return names


def _check_names(names: Sequence[str], where: str) -> None:
    expected = "columns with names, each once"
    if not all(names):
        fault = f"column {names.index('') + 1} has no name"
        raise DataError(fault, where=where, wanted=expected, remedy="name or drop it")
    name, count = Counter(names).most_common(1)[0] if names else ("", 1)
    if count > 1:
        fault, remedy = "two columns have the same name", "rename one of them"
        raise DataError(fault, where=where, found=name, wanted=expected, remedy=remedy)


def _parquet_rows(path: Path) -> Iterator[Row]:
    # Imported on use, since the other formats do without it.
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = _name(path)
    try:
        with pq.ParquetFile(path) as file:
            _check_names(file.schema_arrow.names, where)
            batches = file.iter_batches(batch_size=1000)
            records = (record for batch in batches for record in batch.to_pylist())
            for number, record in enumerate(records):
                yield Row(f"{where}, row {number + 1}", number, record)
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        problem = f"not a readable parquet file: {shorten(str(error), 200)}"
        raise DataError(problem, where=where, remedy="copy or write the file again") from error
