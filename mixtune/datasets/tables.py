"""Rows of CSV and TSV files, in the dialect that the whole file shows.

Where two dialects fit a file equally well, it is refused until the task file names one.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import eq
from pathlib import Path
from typing import Any, NamedTuple

from mixtune.datasets.text_files import Fault, Form, Row, lines, name_of
from mixtune.errors import DataError, shorten
from mixtune.tasks.source_spec import SEPARATORS, Quoting, Reading, kind_of

_QUOTING: dict[Quoting, dict[str, Any]] = {
    "double": {},
    "backslash": {"doublequote": False, "escapechar": "\\"},
    "single": {"quotechar": "'"},
    "none": {"quoting": csv.QUOTE_NONE},
}
_QUOTING_TEXT = {
    "double": 'cells in "quotes" where needed', "backslash": r"\" in quoted cells",
    "single": "cells in 'quotes'", "none": "quotes are text",
}  # fmt: skip
_RARE = 0.005
"""Share of rows in which a column may have its own name as value."""
_DAMAGED = 0.1
"""Share of rows of another number of cells that a table without quoting may have."""
_SPACED = re.compile(r' +"')
_NUMBER = re.compile(r"[-+$€£]?[\d.,/: -]*\d[\d.,/: -]*[%$€£]?")
"""Numbers, amounts and dates: no names of columns."""
_EXCEL = re.compile(r'"?sep=.?"?', re.IGNORECASE)
_HEADER = "a first line with the names of the columns, each once"


class NoNames(DataError):
    """The first line is no line of names."""


class OddNames(DataError):
    """The first line has names that only `header: true` admits."""


Texts = Callable[[], Iterator[tuple[str, str]]]


class Dialect(NamedTuple):
    """The form of one file; `header`: its first row is `names` itself, not a record."""

    separator: str
    quoting: Quoting
    names: list[str]
    header: list[str] | None
    form: Form
    remedy: str


def table_rows(path: Path, dialect: Dialect, encoding: str | None, fault: Fault) -> Iterator[Row]:
    """The rows that are not blank, under the names of the columns."""
    names, header = dialect.names, dialect.header
    reader = _reader((text for _, text in lines(path, encoding)), dialect)
    rows = _cells(reader, path, dialect.remedy)
    if header is not None:
        next(rows)
    for number, (where, cells) in enumerate(rows):
        if cells in (header, names):
            problem = "the line of names is there again"
            remedy = "remove it" if header else "remove header from the task file"
            fault(DataError(problem, where=where, found=shorten(", ".join(cells)), remedy=remedy))
        elif len(cells) == len(names):
            yield Row(where, number, dict(zip(names, cells, strict=True)))
        else:
            error = DataError(
                "the row has another number of cells than the first line",
                where=where,
                found=f"{len(cells)} cells: {shorten(', '.join(cells))}",
                wanted=f"{len(names)} cells: {shorten(', '.join(names))}",
                remedy="put cells that hold the separator in quotes, or fix the row",
            )
            fault(error)


def sniff(path: Path, reading: Reading) -> Dialect:
    """The dialect that all of a file fits; keys of the task file decide where they are set.

    Raises:
        DataError: an empty file, names that are none, two dialects that fit.
    """
    own = _own_separator(path)

    def texts() -> Iterator[tuple[str, str]]:
        return lines(path, reading.encoding)

    separators = [reading.delimiter] if reading.delimiter else [own]
    if reading.delimiter is None:
        where, first = next((row for row in texts() if row[1].strip()), ("", ""))
        if _EXCEL.fullmatch(first.strip()):
            problem, remedy = "Excel's line of the separator stands first", "remove the line"
            raise DataError(problem, where=where, found=first, wanted=_HEADER, remedy=remedy)
        separators += [s for s in SEPARATORS.values() if s != own and s in first]
    fits = {s: _quoting(texts, s, reading, path) for s in separators}
    separator = _separator(fits, path)
    fit = fits[separator]
    if fit.doubt is not None:
        raise fit.doubt
    header = fit.scan.first
    if isinstance(reading.header, tuple):
        names, header = list(reading.header), []
    elif reading.header is False:
        names, header = [f"column_{i}" for i in range(1, len(header) + 1)], []
    else:
        _refuse_data(fit.scan, path, reading)
        names = _column_names(fit.scan, path, separator, reading)
    plain = (separator, fit.quoting, bool(header), reading.encoding) == (own, "double", True, None)
    form = Form(_form_text(separator, fit, bool(header), reading.encoding), plain)
    return Dialect(separator, fit.quoting, names, header or None, form, fit.remedy)


def guess_dialect(path: Path, reading: Reading) -> tuple[Reading, list[str]]:
    """Keys that a file needs where its dialect is not the usual one, and doubts about them."""
    doubts = []
    try:
        dialect = sniff(path, reading)
    except (NoNames, OddNames) as error:
        reading = reading.model_copy(update={"header": isinstance(error, OddNames)})
        dialect = sniff(path, reading)
        doubts = [f"{error.problem}, so the columns are {shorten(', '.join(dialect.names))}"]
    changes: dict[str, str] = {}
    if dialect.separator != _own_separator(path):
        names = {sign: name for name, sign in SEPARATORS.items()}
        changes["separator"] = names[dialect.separator]
    if dialect.quoting != "double":
        changes["quoting"] = dialect.quoting
    return reading.model_copy(update=changes), doubts


def _own_separator(path: Path) -> str:
    return "\t" if kind_of(path.name) == ".tsv" else ","


def _form_text(separator: str, fit: "_Fit", header: bool, encoding: str | None) -> str:
    sign = next((name for name, sign in SEPARATORS.items() if sign == separator), repr(separator))
    parts = [f"separator {sign}", _QUOTING_TEXT[fit.quoting]]
    parts += ["names in the first line" if header else "no line of names", encoding or "UTF-8"]
    spanning = fit.scan.even + fit.scan.odd
    return ", ".join([*parts, f"{spanning} rows span lines"] if spanning else parts)


def _reader(texts: Iterable[str], dialect: "Dialect | _Signs") -> Any:  # noqa: ANN401 - a csv.reader
    quoting = _QUOTING[dialect.quoting]
    return csv.reader(texts, delimiter=dialect.separator, strict=True, **quoting)


def _cells(reader: Any, path: Path, remedy: str) -> Iterator[tuple[str, list[str]]]:  # noqa: ANN401
    """`file:line` and the cells of each row that is not blank."""
    name = name_of(path)
    where, columns = f"{name}:1", 0
    try:
        for cells in reader:
            # Signs alone are a row, too, if not one of empty cells: that is blank.
            if any(map(str.strip, cells)) or len(cells) not in (0, 1, columns):
                columns = columns or len(cells)
                yield where, cells
            where = f"{name}:{reader.line_num + 1}"
    except csv.Error as error:
        raise DataError(
            f"not valid CSV: {error}",
            where=where,
            wanted='a cell that holds commas, quotes or line ends is in "quotes", quotes in it are '
            'doubled (""), and it has at most 131,072 characters',
            remedy="fix the row; a quote that is not closed swallows the rows behind it; write "
            f"longer texts as JSON lines{remedy}",
        ) from error


# ---- what fits ----------------------------------------------------------------------------------


class _Signs(NamedTuple):
    separator: str
    quoting: Quoting


@dataclass(slots=True)
class _Scan:
    """Counts over a whole file as one dialect reads it.

    `ragged`: rows of another number of cells than the first. `odd` and `even`: rows that span
    several lines; of `even` ones, each line that is not blank has a cell for every column by
    itself. `quoted`: lines that have the right number of cells only because of quoting, and rows
    with doubled quotes. `named`:
    column → rows in which its value is its name. `escape`: the first line with a backslash before
    a quote; `spaced`: the first row with a cell that begins with spaces and a quote.
    """

    first: list[str] = field(default_factory=list)
    where: str = ""
    rows: int = 0
    ragged: int = 0
    odd: int = 0
    even: int = 0
    first_even: str = ""
    quoted: int = 0
    named: Counter[int] = field(default_factory=Counter)
    quotes: bool = False
    single: bool = False
    escape: str = ""
    spaced: str = ""
    invalid: bool = False

    @property
    def fits(self) -> bool:
        """True if every row has a cell for every column."""
        return not self.invalid and not self.ragged

    def count(self, cells: Sequence[str], widths: Sequence[int], where: str) -> None:
        """Count one row; `widths`: the cells of each of its lines, were there no quoting."""
        columns = len(self.first)
        self.rows += 1
        if len(cells) != columns:
            self.ragged += 1
        elif len(widths) == 1:
            self.quoted += widths[0] != columns
        elif set(widths) - {0} == {columns}:
            self.first_even = self.first_even or where
            self.even += 1
        else:
            self.odd += 1
        if True in map(eq, cells, self.first) and cells != self.first:
            pairs = enumerate(zip(cells, self.first, strict=False))
            self.named.update(i for i, (cell, name) in pairs if cell == name and name.strip())


class _Fit(NamedTuple):
    """A quoting, the scan under it, and the doubt that remains, if any."""

    quoting: Quoting
    scan: _Scan
    doubt: DataError | None = None
    remedy: str = ""

    @property
    def good(self) -> bool:
        """True if it makes a table of several columns of all of the file."""
        return self.scan.fits and len(self.scan.first) > 1 and self.scan.rows > 0


def _scan(texts: Texts, signs: _Signs, path: Path) -> _Scan:
    scan = _Scan()
    widths: list[int] = []

    def counted() -> Iterator[str]:
        for where, text in texts():
            widths.append(text.count(signs.separator) + 1 if text.strip() else 0)
            scan.single = scan.single or "'" in text
            if '"' in text:
                scan.quotes = True
                scan.escape = scan.escape or where * ('\\"' in text)
                spaced.extend([where] * (f'{signs.separator} "' in text))
                doubled.extend([where] * ('""' in text))
            yield text

    spaced: list[str] = []
    doubled: list[str] = []
    try:
        for where, cells in _cells(_reader(counted(), signs), path, ""):
            # Blank lines before a row are not part of it.
            own = widths[next((i for i, width in enumerate(widths) if width), 0) :]
            widths.clear()
            if spaced and any(map(_SPACED.match, cells)):
                scan.spaced = scan.spaced or where
            if doubled and '"' in (line := signs.separator.join(cells)) and '""' not in line:
                scan.quoted += 1
            spaced.clear()
            doubled.clear()
            if scan.first:
                scan.count(cells, own, where)
            else:
                scan.first, scan.where = cells, where
    except DataError as error:
        if not isinstance(error.__cause__, csv.Error):
            raise
        scan.invalid = True
        scan.where = scan.where or name_of(path)
    return scan


def _quoting(texts: Texts, separator: str, reading: Reading, path: Path) -> _Fit:
    """The quoting that fits a file best under one separator."""
    if reading.quoting is not None:
        return _Fit(reading.quoting, _scan(texts, _Signs(separator, reading.quoting), path))
    double = _scan(texts, _Signs(separator, "double"), path)
    named = double.quotes and _starts_quoted(texts)
    if double.spaced and not named:
        return _Fit("double", double, _spaced_quotes(double.spaced, path))
    if (rare := _rare_quoting(double, texts, separator, path)) is not None:
        return rare
    # Names in quotes show quoting; so do lines that have every cell only because of it.
    certain = named or (double.quoted > 0 and not double.invalid)
    doubtful = double.quotes and (double.invalid or double.even > double.odd)
    if certain or not doubtful:
        return _Fit("double", double)
    return _quoted_or_plain(double, texts, separator, path)


def _rare_quoting(double: _Scan, texts: Texts, separator: str, path: Path) -> _Fit | None:
    """Backslashes before quotes, or single quotes, where they fit a file."""
    if double.escape:
        escaped = _Fit("backslash", _scan(texts, _Signs(separator, "backslash"), path))
        if escaped.scan.fits and double.fits and escaped.scan.rows == double.rows:
            shown = r"as \", or as a backslash and a quote"
            return escaped._replace(doubt=_two_quotings(double.escape, shown, "backslash", path))
        if escaped.good and not escaped.scan.even and not double.fits:
            return escaped
    if double.single and not double.fits:
        single = _Fit("single", _scan(texts, _Signs(separator, "single"), path))
        if single.good and not single.scan.even:
            return single
    return None


def _quoted_or_plain(double: _Scan, texts: Texts, separator: str, path: Path) -> _Fit:
    """The quoting of a file whose quotes join lines, or are damaged, as quoting."""
    plain = _scan(texts, _Signs(separator, "none"), path)
    way_out = f". Or {_setting(path, 'quoting: none')}" if plain.fits else ""
    if plain.invalid or len(plain.first) < 2 or plain.ragged > _DAMAGED * plain.rows:
        return _Fit("double", double, remedy=way_out)
    if separator == "\t" == _own_separator(path):
        return _Fit("none", plain)
    if double.invalid:
        return _Fit("double", double, remedy=way_out)
    shown = (
        f"as quoting, {double.even} rows span several lines; as text, each line is a row of "
        f"{len(double.first)} cells"
    )
    return _Fit("double", double, _two_quotings(double.first_even, shown, "none", path))


def _starts_quoted(texts: Texts) -> bool:
    return next((text.lstrip().startswith('"') for _, text in texts() if text.strip()), False)


def _two_quotings(where: str, shown: str, quoting: Quoting, path: Path) -> DataError:
    return DataError(
        "quotes can be read in two ways",
        where=where,
        found=shown,
        wanted="a file that one quoting fits",
        remedy=_setting(path, f"quoting: {quoting}", "quoting: double"),
    )


def _spaced_quotes(where: str, path: Path) -> DataError:
    return DataError(
        "a space stands before the quotes of a cell, so they do not quote it",
        where=where,
        wanted="quotes directly after the separator",
        remedy=f"remove the spaces; or, where quotes are text, {_setting(path, 'quoting: none')}",
    )


def _setting(path: Path, *settings: str) -> str:
    """A remedy: a source with a key of `Reading`."""
    sources = (f"source: {{train: {shorten(path.name)}, {setting}}}" for setting in settings)
    return f"in the task file, write {' or '.join(sources)}"


def _separator(fits: dict[str, _Fit], path: Path) -> str:
    own, *second = fits
    fitting = [s for s in second if fits[s].good]
    if not fitting or (len(fitting) == 1 and not fits[own].good):
        return fitting[0] if fitting else own
    names = {sign: name for name, sign in SEPARATORS.items()}
    fitting = [own] * fits[own].good + fitting
    columns = (f"{names[s]} gives {len(fits[s].scan.first)} columns" for s in fitting)
    raise DataError(
        "cells can be separated in two ways",
        where=fits[own].scan.where,
        found=", ".join(columns),
        wanted="a file that one separator fits",
        remedy=_setting(path, *(f"separator: {names[s]}" for s in fitting)),
    )


# ---- names of columns ---------------------------------------------------------------------------


def _column_names(scan: _Scan, path: Path, separator: str, reading: Reading) -> list[str]:
    where = scan.where or f"{name_of(path)}:1"
    names = [cell.strip() for cell in scan.first]
    if not names:
        remedy = "copy the file again"
        raise DataError("the file is empty", where=where, wanted=_HEADER, remedy=remedy)
    if len(names) == 1 and separator in names[0] and reading.delimiter is None:
        raise DataError(
            "one column only: each line is in quotes as a whole",
            where=where,
            found=names[0],
            wanted="quotes around single cells",
            remedy="remove the quotes around the lines, and one of each two quotes in them",
        )
    signs = [] if reading.delimiter or len(names) > 1 else SEPARATORS.values()
    if any(sign in names[0] for sign in signs):
        raise DataError(
            "one column only: the cells seem to be separated by another sign",
            where=where,
            found=names[0],
            wanted="commas in .csv, tabs in .tsv, or one other sign in all rows",
            remedy="fix rows of another number of cells, or set separator in the task file",
        )
    if reading.header:
        names = [name or f"column_{i}" for i, name in enumerate(names, start=1)]
    elif not all(names) or names == [str(i) for i in range(len(names))]:
        place = names.index("") + 1 if not all(names) else 1
        name = f"column_{place}" if not all(names) else names[0]
        raise OddNames(
            f"column {place} has {'no name' if not all(names) else 'a number as its name'}",
            where=where,
            wanted=_HEADER,
            remedy=f"name or drop it, or {_setting(path, 'header: true')}, which calls it {name}",
        )
    check_names(names, where)
    for name in names if reading.header is None else ():
        if len(name) > 100 or "\n" in name or _NUMBER.fullmatch(name):
            raise NoNames(
                "the first line does not look like column names",
                where=where,
                found=name,
                wanted=_HEADER,
                remedy=f"put a line such as text{separator}label first, or set header in the task "
                "file: false, or a list of names",
            )
    return names


def check_names(names: Sequence[str], where: str) -> None:
    """Refuse columns without a name, or of the same name."""
    expected = "columns with names, each once"
    if not all(names):
        fault = f"column {names.index('') + 1} has no name"
        raise DataError(fault, where=where, wanted=expected, remedy="name or drop it")
    name, count = Counter(names).most_common(1)[0] if names else ("", 1)
    if count > 1:
        fault, remedy = "two columns have the same name", "rename one of them"
        raise DataError(fault, where=where, found=name, wanted=expected, remedy=remedy)


def _refuse_data(scan: _Scan, path: Path, reading: Reading) -> None:
    """Refuse a first line that repeats as data."""
    if reading.header is not None or not scan.named:
        return
    ((column, count),) = scan.named.most_common(1)
    if count < 2 or count < _RARE * scan.rows:
        return
    names = ", ".join(f"name_{i}" for i in range(1, len(scan.first) + 1))
    raise NoNames(
        "the first line looks like data, not like names of columns",
        where=scan.where,
        found=f"{scan.first[column]!r}, which {count} of {scan.rows} rows have in that column",
        wanted=_HEADER,
        remedy=_setting(path, "header: false", f"header: [{names}]", "header: true"),
    )
