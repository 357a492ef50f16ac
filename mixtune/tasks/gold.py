"""Gold answers: each has to be a value in whole, and a column of them to show one decimal sign."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

from mixtune.errors import DataError, shorten
from mixtune.records import Example
from mixtune.tasks.parsers import Parser
from mixtune.tasks.parsers.figures import Sign, decimal_sign, first_figure
from mixtune.tasks.parsers.numbers import after_mark
from mixtune.tasks.record import Record
from mixtune.tasks.task import Task
from mixtune.tasks.templates import variables

_WANTED = {
    "number": "a number and at most a unit, such as 1234.5, 1 234,5, -3/17, (1,250) or 5 kg",
    "final-number": "a number, or a solution whose last line is #### and a number",
    "amount": "one amount, such as 1234.5, (1,250), $1.5 million or 10.1%, or yes or no",
    "boxed": "a solution with a box that is not empty, \\boxed{...}, or the answer alone",
    "spans": "one TYPE: text a line, each type as in types, or none",
    "triplets": "one head | relation | tail a line, each relation as in types, or none",
}
_REMEDY = {
    "number": "a solution may end in a line '#### 5' (parser: final-number); ",
    "amount": "fractions are read by parser: number; ",
}
_SIGNS: dict[Sign, str] = {".": "point", ",": "comma"}


class Place(NamedTuple):
    """A gold answer, and the file, line and field that it is from."""

    text: str
    where: str


@dataclass(slots=True)
class Decimals:
    """The decimal signs that a column of gold answers shows, and the answers that could have both.

    `points` and `commas`: the first of the answers such as 1.250, and such as 1,250.
    """

    signs: set[Sign] = field(default_factory=set)
    points: Place | None = None
    commas: Place | None = None

    def fault(self, splits: Iterable["Decimals"]) -> DataError | None:
        """A fault if an answer may be two numbers; `splits`: those of the other splits."""
        if self.points is None and self.commas is None:
            return None
        columns = [self, *splits]
        signs = {sign for column in columns for sign in column.signs}
        if signs == {"."} or (not signs and all(column.points is None for column in columns)):
            return None
        first = self.points or self.commas
        assert first is not None
        figure = first_figure(after_mark(first.text))
        whole = figure.replace(",", "").replace(".", "")
        shown = " and ".join(f"a decimal {_SIGNS[sign]}" for sign in sorted(signs))
        why = f"other answers have {shown}" if shown else "no other answer shows which"
        return DataError(
            f"a gold answer that may be {figure.replace(',', '.')} or {whole}",
            where=first.where,
            found=f"{shorten(first.text, 80)!r}; {why}",
            wanted="one decimal sign in all answers",
            remedy="set decimal: comma or decimal: point in the task file",
        )


def check_golds(
    task: Task, examples: Iterable[Example], record: Record, where: str, seen: Decimals
) -> None:
    """Refuse gold answers that are no values; note which decimal sign the others show.

    Raises:
        DataError: a row of a scored task whose target its parser does not read in whole.
    """
    if task.kind == "open" and task.scored:
        for example in examples:
            _check_gold(task, example, record, where, seen)


def _check_gold(task: Task, example: Example, record: Record, where: str, seen: Decimals) -> None:
    place = Place(example.target, f"{where}: {_field(task)}")
    gold, comma = task.reader.gold(example.target, task.types), task.reader.comma
    if gold is None:
        raise _no_value(task, place, written_with_comma=_is_value(comma, task, example.target))
    if comma is None:
        _refuse_stored_number(task, record, place)
        return
    if task.decimal is not None or (task.make is not None and task.make.amount is not None):
        return
    by_comma = comma.gold(example.target, task.types)
    if _stored_number(task, record) or by_comma is None:
        seen.signs.add(".")
    elif gold != by_comma:
        figure = first_figure(after_mark(example.target))
        if "." in figure:
            seen.points = seen.points or place
        else:
            seen.commas = seen.commas or place
    elif sign := decimal_sign(first_figure(after_mark(example.target))):
        seen.signs.add(sign)


def _is_value(parser: Parser | None, task: Task, text: str) -> bool:
    return parser is not None and parser.gold(text, task.types) is not None


def _no_value(task: Task, place: Place, *, written_with_comma: bool) -> DataError:
    names = sorted(variables(task.target)) if task.format == "fields" else []
    name = names[0] if len(names) == 1 and names != ["label"] else "FIELD"
    value = shorten(place.text, 40)
    leave_out = f"fix the row, or leave it out with leave_out: {{{name}: [{value!r}]}}"
    comma = "set decimal: comma in the task file, if that is the decimal sign"
    return DataError(
        f"the parser {task.parser!r} cannot read an answer of the data in whole",
        where=place.where,
        found=repr(shorten(place.text, 80)),
        wanted=_WANTED.get(task.parser, "an answer"),
        remedy=comma if written_with_comma else f"{_REMEDY.get(task.parser, '')}{leave_out}",
    )


def _columns(task: Task) -> list[str]:
    """The columns that the target is made of."""
    if task.format != "fields":
        return []
    names = set(variables(task.target))
    names |= {task.fields.label} if "label" in names and task.fields.label else set()
    return sorted(task.column(name) for name in names - {"label"})


def _field(task: Task) -> str:
    columns = _columns(task)
    return f"field {columns[0]!r}" if len(columns) == 1 else "the answer"


def _stored_number(task: Task, record: Record) -> bool:
    """True if the target is made of a number that is stored as one: its decimal sign is a point."""
    values = [record.get(column) for column in _columns(task)]
    return any(isinstance(value, int | float | Decimal) for value in values)


def _refuse_stored_number(task: Task, record: Record, place: Place) -> None:
    if task.decimal == "comma" and "." in place.text and _stored_number(task, record):
        raise DataError(
            "a number with a decimal point, and decimal: comma",
            where=place.where,
            found=repr(shorten(place.text, 80)),
            wanted="answers that are stored as text",
            remedy="remove decimal: comma from the task file",
        )
