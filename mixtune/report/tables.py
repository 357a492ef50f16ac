"""The numbers of every figure and table as CSV text.

Knows: which rows go into which file. Does not know: HTML, how a number was computed.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import fields
from operator import attrgetter

from mixtune.records import Claim, Estimate, Judged, MixRow, Result
from mixtune.report.evidence import Clean, clean
from mixtune.report.figures import Cell, CurvePoint, Floor, cells, counts, curves, floors
from mixtune.report.inputs import LengthRow, ReportInput, RunRow
from mixtune.report.plots import Portion, portions


def csv_files(page: ReportInput) -> dict[str, str]:
    """Each figure's numbers as CSV text by file name: matrix, floors, curves and others."""
    value = attrgetter(*_names(MixRow))
    mixes = [
        (c.run, c.cocktail, "" if c.seed is None else c.seed, *value(c.mix)) for c in counts(page)
    ]
    tables = {
        "matrix": csv_of(Cell, cells(page)),
        "floors": csv_of(Floor, floors(page)),
        "curves": csv_of(CurvePoint, curves(page)),
        "counts": _csv(["run", "cocktail", "seed", *_names(MixRow)], mixes),
        "shares": csv_of(Portion, portions(page)),
        "lengths": csv_of(LengthRow, page.lengths),
        "runs": csv_of(RunRow, page.runs),
        "claims": csv_of(Claim, page.claims),
        "estimates": csv_of(Estimate, page.estimates),
        "clean": csv_of(Clean, clean(page)),
        "judged": csv_of(Judged, page.judged),
        "results": csv_of(Result, (row for row in page.results if row.split == page.split)),
    }
    return {f"{name}.csv": text for name, text in tables.items()}


def csv_of(row_type: type, rows: Iterable[object]) -> str:
    """Rows of one type as CSV text, a column per field."""
    names = _names(row_type)
    return _csv(names, map(attrgetter(*names), rows))


def _names(row_type: type) -> list[str]:
    return [field.name for field in fields(row_type)]


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Floats in their shortest exact form, None as an empty field."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
