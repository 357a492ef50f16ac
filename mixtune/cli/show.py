"""Terminal output: consoles, tables, JSON, progress with an ETA, plain lines in a pipe."""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from mixtune.errors import shorten
from mixtune.planning.runs import AnswerPlan, Events, Plan, RunPlan
from mixtune.records import TrainStep

WIDE = 160
"""Columns of a table in a pipe."""

READABLE = 12
"""Letters of a word that stay together in a column; a table that would split more is no table."""

LONGEST = 1000
"""Letters of a message's line that are shown."""

UNENCODABLE = "mixtune-plain"
"""Name of the handler for signs that the output's encoding lacks."""

PLAIN_EVERY = 20.0
"""Seconds between two plain lines of the same run; more where more than two are at work."""


def console(stderr: bool = False) -> Console:
    """A console that honours NO_COLOR and the terminal's width or COLUMNS; wide when piped."""
    stream = sys.stderr if stderr else sys.stdout
    known = "COLUMNS" in os.environ or (stream is not None and stream.isatty())
    width = None if known else WIDE
    return _Console(stderr=stderr, width=width, highlight=False, soft_wrap=False)


class _Console(Console):
    """Lets no control character of a text through, and says so when nobody reads any more."""

    def print(self, *objects: Any, **options: Any) -> None:  # noqa: ANN401 - rich's
        """Print; texts as `printable`."""
        super().print(*(printable(o) if isinstance(o, str) else o for o in objects), **options)

    def on_broken_pipe(self) -> None:
        """Called by rich where the error is handled; it would end the program with 1."""
        raise BrokenPipeError


def printable(text: object) -> str:
    """Text as it may reach a terminal: control characters, bidi marks and the like escaped."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(text))


def safe(text: object) -> str:
    """Printable, and no markup for rich."""
    return escape(printable(text))


def complain(text: str) -> None:
    """A message to the standard error, whatever its parts came from; no line without end."""
    lines = [line if len(line) <= LONGEST else shorten(line, LONGEST) for line in text.split("\n")]
    console(stderr=True).print("\n".join(lines), markup=False, soft_wrap=True)


def plain_letters(error: UnicodeError) -> tuple[str, int]:
    """For codecs.register_error: signs that the output's encoding lacks, by ones it has."""
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    return "".join(_PLAIN.get(c, repr(c.encode("unicode_escape"))[2:-1]) for c in lost), error.end


_PLAIN = {"–": "-", "−": "-", "…": "~", "→": ">", "×": "x", "·": ".", "≥": ">", "≤": "<"}


# ---- rows, for people and as JSON ----------------------------------------------------------------

Columns = Mapping[str, str | Callable[[Any], object]]
"""Heading → "name" or "name:format" of a row's field or key, or a function of the row."""


def fields(names: str) -> Columns:
    """Columns under the names of their fields."""
    return {name: name for name in names.split()}


def print_json(value: object, indent: int | None = 1) -> None:
    """Print a value, which may hold dataclasses, as JSON."""
    print(json.dumps(value, indent=indent, default=asdict))


def show(rows: Sequence[Any], columns: Columns, title: str, as_json: bool = False) -> None:
    """Print rows, dataclasses or dictionaries, under columns; or all that they hold, as JSON."""
    if as_json:
        print_json(rows)
        return
    cells = [[_cell(row, column) for column in columns.values()] for row in rows]
    show_cells(title, list(columns), cells)


def show_cells(title: str, columns: Sequence[str], cells: Sequence[Sequence[object]]) -> None:
    """Print a table of rows of cells."""
    console().print(CellTable(title, columns, cells))


def _cell(row: Any, column: str | Callable[[Any], object]) -> object:  # noqa: ANN401 - any row
    if not isinstance(column, str):
        return column(row)
    name, _, form = column.partition(":")
    value = row[name] if isinstance(row, dict) else getattr(row, name)
    return "–" if value is None else format(value, form)


def say(text: str, *, whole: bool = False) -> None:
    """Print a text without markup, folded to the width; `whole`: no line is broken."""
    console().print(text, markup=False, soft_wrap=whole)


def interval(low: float | None, high: float | None, sign: str = "") -> str:
    """The two ends of an interval; "too few" where there is none."""
    return "too few" if low is None or high is None else f"{low:{sign}.3f}, {high:{sign}.3f}"


def interval_of(row: Any) -> str:  # noqa: ANN401 - any row with an interval
    """The interval of a row; with signs where the row is a difference."""
    return interval(row.low, row.high, "+" if getattr(row, "reference", "") else "")


@dataclass(frozen=True)
class CellTable:
    """Escaped cells, as a table where its columns keep `READABLE` characters, else blocks."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The first of a table with lines, one without, and blocks that fits the width."""
        needed = sum(map(self._needed, range(len(self.columns))))
        if needed + 3 * len(self.columns) + 1 <= options.max_width:
            yield self._table(Table(header_style="bold"))
        elif needed + len(self.columns) - 1 <= options.max_width:
            yield self._table(Table(header_style="bold", box=None, padding=(0, 1, 0, 0)))
        else:
            yield from self._blocks()

    def _needed(self, column: int) -> int:
        """Width that a column needs: its longest word, as far as words are kept whole."""
        cells = [self.columns[column], *(str(row[column]) for row in self.rows)]
        return min(READABLE, max((len(word) for cell in cells for word in cell.split()), default=1))

    def _table(self, table_: Table) -> Table:
        table_.title, table_.title_justify = safe(self.title), "left"
        table_.pad_edge = table_.box is not None
        for i, name in enumerate(self.columns):
            right = all(_is_number(row[i]) for row in self.rows)
            table_.add_column(safe(name), justify="right" if right else "left", overflow="fold")
        for row in self.rows:
            table_.add_row(*map(safe, row))
        return table_

    def _blocks(self) -> Iterator[Text | Padding]:
        """Each row as a block of `name: value`, the first value as its heading."""
        yield Text(printable(self.title), style="italic")
        for row in self.rows:
            yield Text(printable(row[0]), style="bold", overflow="fold")
            named = zip(self.columns[1:], row[1:], strict=True)
            pairs = [f"{name}: {cell}" for name, cell in named if str(cell)]
            text = Text(printable("; ".join(pairs)), overflow="fold")
            yield Padding(text, (0, 0, 0, 2))


def _is_number(cell: object) -> bool:
    return str(cell)[:1] in "0123456789+-−.–" if str(cell) else True


def span(seconds: float) -> str:
    """A length of time in words: 42 s, 3 min 05 s, 1 h 20 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def progress() -> closing["StudyProgress"]:
    """The progress of a study on the standard error, in a `with`."""
    return closing(StudyProgress(console(stderr=True)))


class StudyProgress(Events):
    """A line for each event worth one; on a terminal also a bar over the whole study."""

    def __init__(self, out: Console) -> None:
        self.out = out
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )
        self.bar.add_task("", total=1.0, left="")
        self._task = self.bar.tasks[0]
        self._last: dict[str, float] = {}
        self._places: dict[str, str] = {}
        self._at_work: set[str] = set()

    def started(self, plan: Plan, todo: int, cost: float) -> None:
        """Says how much there is to do."""
        self.bar.reset(self._task.id, total=max(cost, 1.0), left="")
        if todo:
            self.bar.start()
        self._places = {
            run.system: f"[{number}/{len(plan.runs)}] {run.title}"
            for number, run in enumerate(plan.runs, start=1)
        }
        done = len(plan.runs) - todo
        self.note(f"{plan.study.name}: {len(plan.runs)} systems, {done} done, {todo} to do")

    def note(self, text: str) -> None:
        """Says it, and the time left."""
        remaining = self._left()
        self.out.print(safe(f"{text} ({remaining})" if remaining else text), soft_wrap=True)

    def run_started(self, run: RunPlan) -> None:
        """Names the run."""
        self._at_work.add(run.system)
        self._last[run.system] = time.monotonic()
        self._advance(self._places[run.system])

    def trained(self, run: RunPlan, step: TrainStep, steps: int, cost: float) -> None:
        """Moves the bar; in a pipe says where training is, now and then."""
        place, where = self._places[run.system], f"step {step.step + 1}/{steps} loss"
        self._advance(f"{place} {where} {step.loss:.3f}", cost)
        pause = PLAIN_EVERY * max(1, len(self._at_work) / 2)
        due = step.step + 1 == steps or time.monotonic() - self._last[run.system] > pause
        if self.bar.disable and due:
            self._last[run.system] = time.monotonic()
            self.note(f"{place}: {where} {step.loss:.4f}")

    def answered(self, run: RunPlan, answer: AnswerPlan, cost: float) -> None:
        """Moves the bar."""
        place = f"{self._places[run.system]} {answer.task}/{answer.split}/{answer.form}"
        self._advance(place, cost)

    def run_finished(self, run: RunPlan, seconds: float) -> None:
        """Says that it is done."""
        self._at_work.discard(run.system)
        self.note(f"{self._places[run.system]}: done in {span(seconds)}")

    def run_failed(self, run: RunPlan, error: str) -> None:
        """Says why."""
        self._at_work.discard(run.system)
        self.note(f"{self._places[run.system]}: FAILED, {error}")

    def close(self) -> None:
        """Takes the bar off the screen."""
        if not self.bar.disable:  # in a pipe rich would end with an empty line
            self.bar.stop()

    def _advance(self, place: str, cost: float = 0.0) -> None:
        more = len(self._at_work) - 1
        text = f"{place}, {more} more at work" if more > 0 else place
        self.bar.update(self._task.id, advance=cost, description=safe(text), left=self._left())

    def _left(self) -> str:
        """The time left in words; empty until there is something to go by."""
        elapsed, done = self._task.elapsed or 0.0, self._task.completed
        if self._task.percentage <= 0.5 or elapsed < 2:
            return ""
        return f"{span(elapsed * max(0.0, self._task.remaining or 0.0) / done)} left"
