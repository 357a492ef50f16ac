"""Rows of a file: CSV, TSV, JSON lines (gzipped too), a JSON list, parquet.

A fault of one row is given to `fault`, which by default raises it; a caller that collects faults
gets the rows that are left. A fault of the whole file is raised.

Knows: lines, encodings, formats, what can be wrong with a file. Does not know: tasks, splits.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from mixtune.errors import DataError, did_you_mean, shorten
from mixtune.tasks.source_spec import ENDINGS, ending

LONGEST_LINE = 10_000_000
"""Bytes that one line of a file, or one record of a JSON list, may have."""
LARGEST_LIST = 500_000_000
"""Bytes that a JSON list may have: it is read whole."""

Fault = Callable[[DataError], None]


@dataclass(frozen=True, slots=True)
class Row:
    """One record, where it stands (for messages), its place, and the one question it is about."""

    where: str
    number: int
    record: Mapping[str, Any]
    only: str | None = None


def refuse(fault: DataError) -> None:
    """Raise it: no row may be wrong."""
    raise fault


def read_rows(path: Path, fault: Fault = refuse) -> Iterator[Row]:
    """The records of a file, in their order; Row.where is `file:line`, in parquet `file, row n`.

    Raises:
        DataError: no such file, a folder, an unknown ending, a file that cannot be read, a wrong
            encoding, a header without names; and, through `fault`, rows that cannot be read.
    """
    _check_file(path)
    kind = ending(path.name)
    read = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet}.get(kind or "")
    try:
        if read is None:
            lines = kind != ".json" or _is_lines(path)
            read = read_jsonl if lines else _read_list
        yield from read(path, fault)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"cannot read the file: {shorten(str(error), 200)}",
            where=_name(path),
            remedy="copy the file again",
        ) from error


def read_jsonl(path: Path, fault: Fault = refuse) -> Iterator[Row]:
    """The objects of a JSON-lines file, plain or gzipped, a line at a time.

    Blank lines are not records.

    Raises:
        DataError: a line too long; through `fault`, a wrong encoding or a malformed line.
    """
    with _open(path) as file:
        number = 0
        for line_number, line in enumerate(_lines(file, path), start=1):
            if not line.strip():
                continue
            where = f"{_name(path)}:{line_number}"
            try:
                yield Row(where, number, _parse_line(line, where))
            except DataError as error:
                fault(error)
            number += 1


def is_rows(path: Path) -> bool:
    """Whether a file is one of rows: a .json file if it is a list, or has an object a line."""
    kind = ending(path.name)
    if kind != ".json" or not path.is_file():
        return kind not in (None, ".json")
    return _is_lines(path) or _start(path)[0][:1] == b"["


def _is_lines(path: Path) -> bool:
    """Whether a .json file holds an object a line, which other tools read too."""
    return all(line.startswith(b"{") for line in _start(path))


def _start(path: Path) -> tuple[bytes, bytes]:
    """The first two lines that are not blank."""
    with path.open("rb") as file:
        lines = (line for line in iter(lambda: file.readline(LONGEST_LINE), b"") if line.strip())
        return next(lines, b"").removeprefix(b"\xef\xbb\xbf").lstrip(), next(lines, b"")


def _name(path: Path) -> str:
    return shorten(str(path), 300)


def _check_file(path: Path) -> None:
    where = _name(path)
    if path.is_dir():
        raise DataError(
            "a folder stands where a file is wanted", where=where, remedy="name the file in it"
        )
    if not path.is_file():
        there = path.parent.is_dir() and [p.name for p in path.parent.iterdir() if ending(p.name)]
        raise DataError(
            "no such file",
            where=where,
            remedy=did_you_mean(path.name, there) if there else "check the path",
        )
    if ending(path.name) is None:
        raise DataError(
            "no kind of file that rows are read from", where=where, wanted=", ".join(ENDINGS)
        )


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _lines(file: BinaryIO, path: Path) -> Iterator[bytes]:
    """Lines of bounded length, so that a file without line ends cannot fill the memory."""
    for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
        if len(line) > LONGEST_LINE:
            raise DataError(
                "the line is too long",
                where=f"{_name(path)}:{number}",
                found=f"over {LONGEST_LINE} bytes",
                wanted="a record a line, UTF-8",
                remedy="check the file's format; one large JSON list ends in .json",
            )
        yield line


def _decode(line: bytes, where: str) -> str:
    if b"\0" in line or line.startswith((b"\xff\xfe", b"\xfe\xff")):
        _wrong_encoding("NUL bytes: UTF-16, or no text at all", line[:40], where)
    try:
        return line.decode("utf-8-sig" if where.endswith(":1") else "utf-8")
    except UnicodeDecodeError as error:
        near = line[max(0, error.start - 20) : error.start + 20]
        _wrong_encoding(f"{error.reason} at byte {error.start} of the line", near, where, error)


def _wrong_encoding(
    what: str, near: bytes, where: str, error: UnicodeDecodeError | None = None
) -> NoReturn:
    raise DataError(
        f"wrong encoding: {what}",
        where=where,
        found=repr(near),
        wanted="UTF-8",
        remedy="convert the file, for example with iconv -f LATIN1 -t UTF-8",
    ) from error


# ---- JSON ---------------------------------------------------------------------------------------


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    text = _decode(line, where)
    try:
        record = _decoder().decode(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"not valid JSON: {shorten(str(error), 200)}",
            where=where,
            found=text.strip(),
            wanted="one JSON object a line",
            remedy="mend or remove the line",
        ) from error
    return _checked(record, text, where)


def _checked(record: object, text: str, where: str) -> dict[str, Any]:
    """A record as it came from JSON text."""
    if not isinstance(record, dict):
        raise DataError(
            "the record is not a JSON object",
            where=where,
            found=text.strip(),
            wanted='{"field": value, …}',
            remedy="one object a line in .jsonl; a list of objects in .json",
        )
    if "\\u" in text:
        _refuse_lone_surrogates(record, where)
    return record


def _decoder() -> json.JSONDecoder:
    return json.JSONDecoder(parse_constant=_refuse_constant, object_pairs_hook=_object)


def _read_list(path: Path, fault: Fault) -> Iterator[Row]:
    """The objects of one JSON list, decoded one after another so that each has its line."""
    where = _name(path)
    if path.stat().st_size > LARGEST_LIST:
        raise DataError(
            "a JSON list this large is not read",
            where=where,
            found=f"{path.stat().st_size} bytes",
            wanted=f"at most {LARGEST_LIST} bytes",
            remedy="convert it to JSON lines, for example with jq -c '.[]'",
        )
    text = _decode(path.read_bytes(), f"{where}:1")
    space = _skip(text, 0)
    if text[space : space + 1] != "[":
        raise DataError(
            "the file is not a JSON list",
            where=where,
            found=text[space : space + 200] or "an empty file",
            wanted='[{"field": value, …}, …]',
            remedy="put the objects in a list, or one on each line",
        )
    yield from _items(text, space, where, fault)


def _items(text: str, start: int, where: str, fault: Fault) -> Iterator[Row]:
    decoder, number, line, counted = _decoder(), 0, 1, 0
    position = _skip(text, start + 1)
    while text[position : position + 1] != "]":
        line, counted = line + text.count("\n", counted, position), position
        place = f"{where}:{line}"
        try:
            record, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"not valid JSON: {shorten(str(error), 200)}",
                where=place,
                found=text[position : position + 200],
                remedy="mend the record",
            ) from error
        if end - position > LONGEST_LINE:
            raise DataError(
                "the record is too long", where=place, found=f"{end - position} characters",
                wanted=f"at most {LONGEST_LINE}", remedy="mend or remove the record",
            )  # fmt: skip
        try:
            yield Row(place, number, _checked(record, text[position:end], place))
        except DataError as error:
            fault(error)
        number += 1
        position = _next(text, end, place)
    if text[position + 1 :].strip():
        raise DataError("text behind the list's end", where=where, found=text[position + 1 :])


def _next(text: str, end: int, where: str) -> int:
    """Where the next record or the closing bracket stands."""
    position = _skip(text, end)
    sign = text[position : position + 1]
    after = _skip(text, position + 1)
    if sign == "]":
        return position
    if sign != "," or text[after : after + 1] in ("]", ""):
        raise DataError(
            "the list breaks off or lacks a comma behind this record",
            where=where,
            found=text[position : position + 80] or "the end of the file",
            wanted="a comma and a record, or ]",
            remedy="mend the file, or copy it again",
        )
    return after


def _skip(text: str, position: int) -> int:
    while text[position : position + 1] in (" ", "\t", "\r", "\n"):
        position += 1
    return position


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON value")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} is there twice")
    return record


def _refuse_lone_surrogates(record: dict[str, Any], where: str) -> None:
    """Half of a character that needs two escapes cannot be written as UTF-8 later on."""
    for field, value in record.items():
        try:
            json.dumps([field, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise DataError(
                "half an escaped character (a lone surrogate)",
                where=f"{where}: field {field.encode(errors='replace').decode()!r}",
                found=repr(value),
                wanted="text that UTF-8 can hold",
                remedy="mend the escape sequence",
            ) from error


# ---- tables -------------------------------------------------------------------------------------


def _read_csv(path: Path, fault: Fault) -> Iterator[Row]:
    """The rows of a CSV or TSV file by the names in its first line."""
    where = _name(path)
    separator = "\t" if ending(path.name) == ".tsv" else ","
    with path.open("rb") as file:
        lines = (_decode(line, f"{where}:{i}") for i, line in enumerate(_lines(file, path), 1))
        reader = csv.reader(lines, delimiter=separator, strict=True)
        names: list[str] | None = None
        number = 0
        for line, cells in _csv_rows(reader, where):
            if names is None:
                names = _header(cells, f"{where}:{line}", separator)
            elif len(cells) != len(names):
                fault(_ragged(cells, names, f"{where}:{line}"))
                number += 1
            else:
                yield Row(f"{where}:{line}", number, dict(zip(names, cells, strict=True)))
                number += 1
    if names is None:
        raise DataError(
            "the file is empty", where=where, wanted="a line of column names, then rows",
            remedy="copy the file again",
        )  # fmt: skip


def _csv_rows(reader: Any, where: str) -> Iterator[tuple[int, list[str]]]:  # noqa: ANN401 - a csv.reader
    """(first line, cells) of the rows that are not blank."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"not valid CSV: {error}",
                where=f"{where}:{line}",
                wanted='a cell that holds commas, quotes or line ends is in "quotes", quotes in '
                'it are doubled (""), and it has at most 131,072 characters',
                remedy="mend the row; a quote that is not closed swallows the rows behind it",
            ) from error
        if cells is None:
            return
        if any(cell.strip() for cell in cells):
            yield line, cells


def _header(cells: list[str], where: str, separator: str) -> list[str]:
    names = [cell.strip() for cell in cells]
    wanted = "a first line with the names of the columns, each once"
    if len(names) == 1 and any(sign in names[0] for sign in ";\t,|"):
        raise DataError(
            "one column only: the cells seem to be separated by another sign",
            where=where,
            found=names[0],
            wanted="commas in .csv, tabs in .tsv",
            remedy="save the file again with that separator",
        )
    _check_names(names, where, wanted)
    odd = [n for n in names if len(n) > 100 or "\n" in n or n.replace(".", "").isdigit()]
    if odd:
        raise DataError(
            "the first line does not look like column names",
            where=where,
            found=odd[0],
            wanted=wanted,
            remedy=f"put a line such as text{separator}label first",
        )
    return names


def _check_names(names: Iterable[str], where: str, wanted: str) -> None:
    """Refuse columns without a name, and names that are there twice."""
    seen: set[str] = set()
    for place, name in enumerate(names, start=1):
        if not name:
            raise DataError(
                f"column {place} has no name", where=where, wanted=wanted, remedy="name or drop it"
            )
        if name in seen:
            raise DataError(
                "two columns have the same name", where=where, found=name, wanted=wanted,
                remedy="rename one of them",
            )  # fmt: skip
        seen.add(name)


def _ragged(cells: list[str], names: list[str], where: str) -> DataError:
    return DataError(
        "the row has another number of cells than the first line",
        where=where,
        found=f"{len(cells)} cells: {shorten(', '.join(cells))}",
        wanted=f"{len(names)} cells: {shorten(', '.join(names))}",
        remedy="put cells that hold the separator in quotes, or mend the row",
    )


def _read_parquet(path: Path, fault: Fault) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    where = _name(path)
    try:
        with pq.ParquetFile(path) as file:
            _check_names(file.schema_arrow.names, where, "columns with names, each once")
            number = 0
            for batch in file.iter_batches(batch_size=1000):
                for record in batch.to_pylist():
                    yield Row(f"{where}, row {number + 1}", number, record)
                    number += 1
    except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
        raise DataError(
            f"not a readable parquet file: {shorten(str(error), 200)}",
            where=where,
            remedy="copy or write the file again",
        ) from error
