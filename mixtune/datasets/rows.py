"""Read the rows of a file: CSV, TSV, JSON, parquet, folders of `datasets.save_to_disk`.

A bad row is passed to `fault`, which raises it by default; a caller that collects faults gets the
other rows. A fault of the whole file is always raised.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mixtune.datasets.arrow_rows import is_saved, parquet_rows, saved_rows
from mixtune.datasets.json_rows import has_rows, is_json_lines, json_lines, json_rows, json_value
from mixtune.datasets.tables import guess_dialect, sniff, table_rows
from mixtune.datasets.text_files import (
    Fault,
    Form,
    Row,
    guess_encodings,
    is_utf8,
    name_of,
    refuse,
)
from mixtune.errors import DataError, did_you_mean, shorten
from mixtune.tasks.source_spec import AS_SHOWN, ENDINGS, READABLE, TABLES, Reading, ending, kind_of

__all__ = ["ENDINGS", "Fault", "Form", "Row", "guess_reading", "is_rows", "read_rows", "refuse"]


def read_rows(
    path: Path,
    fault: Fault = refuse,
    reading: Reading = AS_SHOWN,
    note: Callable[[Form], None] = lambda form: None,
) -> Iterator[Row]:
    """The records of a file in stored order; the form that it was read in is passed to `note`.

    Row.where is `file:line`; `file, row n` in a JSON list or parquet.

    Raises:
        DataError: no such file, a folder, an unknown ending, an unreadable file, a wrong encoding,
            a header without names; and, through `fault`, rows that cannot be read.
    """
    _check_file(path)
    kind, encoding = kind_of(path.name), reading.encoding
    with _file_errors(path):
        if path.is_dir():
            yield from saved_rows(path, fault)
        elif kind == ".parquet":
            yield from parquet_rows(path, fault)
        elif kind in TABLES:
            dialect = sniff(path, reading)
            note(dialect.form)
            yield from table_rows(path, dialect, encoding, fault)
        elif is_json_lines(path, encoding):
            if encoding is not None:
                note(Form(f"encoding {encoding}", False))
            yield from json_lines(path, encoding, fault)
        else:
            rows, text = json_value(path, encoding)
            note(rows.form)
            yield from json_rows(path, rows, text, fault)


def guess_reading(path: Path) -> tuple[Reading, list[str]]:
    """Keys that a source needs to be read, and the doubts that are left about them.

    Raises:
        DataError: as `read_rows`, for a fault of the whole file.
    """
    _check_file(path)
    kind = kind_of(path.name)
    if path.is_dir() or kind == ".parquet":
        return AS_SHOWN, []
    with _file_errors(path):
        reading, doubts = AS_SHOWN, []
        guesses = [] if is_utf8(path) else guess_encodings(path)
        if guesses:
            reading = Reading(encoding=guesses[0].encoding)
            second = " or ".join(guess.encoding for guess in guesses[1:])
            doubts.append(f"the encoding is a guess, it gives {guesses[0].sample!r}")
            doubts[0] += f"; {second} would fit, too" if second else ""
        if kind in TABLES:
            reading, more = guess_dialect(path, reading)
            doubts += more
    return reading, doubts


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        problem = f"cannot read the file: {shorten(str(error), 200)}"
        raise DataError(problem, where=name_of(path), remedy="copy the file again") from error


def is_rows(path: Path) -> bool:
    """True for a file of rows; a .json file is one if it holds rows in a form that is known."""
    if path.is_dir():
        return is_saved(path)
    kind = kind_of(path.name)
    if kind != ".json" or not path.is_file():
        return kind not in (None, ".json")
    with _file_errors(path):
        return has_rows(path)


def _check_file(path: Path) -> None:
    where = name_of(path)
    if path.is_dir():
        if not is_saved(path):
            remedy = "name the file in it, or a folder of datasets.save_to_disk"
            raise DataError("this is a folder, not a file", where=where, remedy=remedy)
        return
    if not path.is_file():
        names = path.parent.is_dir() and [p.name for p in path.parent.iterdir() if ending(p.name)]
        remedy = did_you_mean(path.name, names) if names else "check the path"
        raise DataError("no such file", where=where, remedy=remedy)
    if ending(path.name) is None:
        raise DataError("rows are not read from files of this kind", where=where, wanted=READABLE)
