"""Terminal output: tables, progress with an ETA, plain lines in a pipe.

Knows: rich, widths, what to say at each event. Does not know: how anything is computed.
"""

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from mixtune.analysis.effects import TO_SINGLE
from mixtune.errors import shorten
from mixtune.planning.plan import Planner
from mixtune.planning.runs import AnswerPlan, Events, Plan, RunPlan
from mixtune.planning.summary import size_lines
from mixtune.records import MixRow, Result, TrainStep
from mixtune.results.study_results import SplitResults, StudyFacts, run_rows
from mixtune.store.folder import EXTRA_KINDS
from mixtune.store.states import Unit

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


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> "Rows":
    """A table of escaped cells; numbers to the right; one block per row where it is too narrow."""
    return Rows(title, columns, rows)


class Rows:
    """Rows under columns, as a table where its columns keep `READABLE` characters, else blocks."""

    def __init__(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
    ) -> None:
        self.title = title
        self.columns = columns
        self.rows = rows

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


class Eta:
    """Time left, from the share of the work's cost that is done."""

    def __init__(self, cost: float) -> None:
        self.cost = cost
        self.done = 0.0
        self._begun = time.monotonic()

    def add(self, cost: float) -> None:
        """Advance by an amount of work."""
        self.done = min(self.cost, self.done + cost)

    @property
    def left(self) -> str:
        """In words; empty until there is something to go by."""
        elapsed = time.monotonic() - self._begun
        if self.done <= 0.005 * self.cost or elapsed < 2:
            return ""
        return f"{span(elapsed * (self.cost - self.done) / self.done)} left"


class PlainProgress(Events):
    """One line per event worth a line: for pipes, logs and CI."""

    def __init__(self, out: Console) -> None:
        self.out = out
        self.eta = Eta(0)
        self._last: dict[str, float] = {}
        self._places: dict[str, str] = {}
        self._at_work: set[str] = set()

    def started(self, plan: Plan, todo: int, cost: float) -> None:
        """Says how much there is to do."""
        self.eta = Eta(cost)
        self._places = {
            run.system: f"[{number}/{len(plan.runs)}] {run.title}"
            for number, run in enumerate(plan.runs, start=1)
        }
        done = len(plan.runs) - todo
        self._say(f"{plan.study.name}: {len(plan.runs)} systems, {done} done, {todo} to do")

    def note(self, text: str) -> None:
        """Says it."""
        self._say(text)

    def run_started(self, run: RunPlan) -> None:
        """Says which run begins."""
        self._at_work.add(run.system)
        self._last[run.system] = time.monotonic()

    def trained(self, run: RunPlan, step: TrainStep, steps: int, cost: float) -> None:
        """Says where training is, now and then."""
        self.eta.add(cost)
        pause = PLAIN_EVERY * max(1, len(self._at_work) / 2)
        if step.step + 1 == steps or time.monotonic() - self._last[run.system] > pause:
            self._last[run.system] = time.monotonic()
            self._say(
                f"{self._places[run.system]}: step {step.step + 1}/{steps} loss {step.loss:.4f}"
            )

    def answered(self, run: RunPlan, answer: AnswerPlan, cost: float) -> None:
        """Counts it."""
        self.eta.add(cost)

    def run_finished(self, run: RunPlan, seconds: float) -> None:
        """Says that it is done."""
        self._at_work.discard(run.system)
        self._say(f"{self._places[run.system]}: done in {span(seconds)}")

    def run_failed(self, run: RunPlan, error: str) -> None:
        """Says why."""
        self._at_work.discard(run.system)
        self._say(f"{self._places[run.system]}: FAILED, {error}")

    def _say(self, text: str) -> None:
        remaining = self.eta.left
        self.out.print(safe(f"{text} ({remaining})" if remaining else text), soft_wrap=True)


class BarProgress(PlainProgress):
    """A bar over the whole study, with what is being done and the time left."""

    def __init__(self, out: Console) -> None:
        super().__init__(out)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=out,
            transient=True,
        )
        self._task = self.bar.add_task("", total=1.0, left="")

    def started(self, plan: Plan, todo: int, cost: float) -> None:
        """Starts the bar."""
        super().started(plan, todo, cost)
        if todo:
            self.bar.start()
        self.bar.update(self._task, total=max(cost, 1.0))

    def run_started(self, run: RunPlan) -> None:
        """Names the run."""
        super().run_started(run)
        self._show(self._places[run.system])

    def trained(self, run: RunPlan, step: TrainStep, steps: int, cost: float) -> None:
        """Moves the bar."""
        self.eta.add(cost)
        self._show(f"{self._places[run.system]} step {step.step + 1}/{steps} loss {step.loss:.3f}")

    def answered(self, run: RunPlan, answer: AnswerPlan, cost: float) -> None:
        """Moves the bar."""
        super().answered(run, answer, cost)
        self._show(f"{self._places[run.system]} {answer.task}/{answer.split}/{answer.form}")

    def close(self) -> None:
        """Takes the bar off the screen."""
        self.bar.stop()

    def _show(self, text: str) -> None:
        more = len(self._at_work) - 1
        text = f"{text}, {more} more at work" if more > 0 else text
        self.bar.update(
            self._task, completed=self.eta.done, description=safe(text), left=self.eta.left
        )


@contextmanager
def progress(out: Console) -> Iterator[PlainProgress]:
    """A bar on a terminal, plain lines elsewhere."""
    if not out.is_terminal:
        yield PlainProgress(out)
        return
    bar = BarProgress(out)
    try:
        yield bar
    finally:
        bar.close()


# ---- tables -----------------------------------------------------------------------------------


def show_plan(out: Console, plan: Plan, planner: Planner) -> None:
    """Cells with rows and tokens, asked and got, then totals."""
    study = plan.study
    rows = [
        (
            run.system or "(unresolved)",
            run.name,
            "–" if run.seed is None else run.seed,
            ", ".join(map(_rows_got, run.mix)) or "–",
            "; ".join(map(_share_got, run.mix)) or "–",
            sum(row.supervised_tokens for row in run.mix) or "–",
            sum(answer.items for answer in run.answers),
        )
        for run in plan.runs
    ]
    unit = study.unit.replace("_", " ")
    shares = f"part of {unit}: asked → got"
    columns = ("id", "cocktail", "seed", "rows got", shares, "supervised tokens", "answers")
    out.print(table(f"{study.name}: {len(plan.runs)} systems on {study.model}", columns, rows))
    show_mixes(out, plan)
    for task, split in planner.corpus.items:
        dropped = planner.corpus.leaked_validation.get(task, 0) if split == "validation" else 0
        note = f"; {dropped} dropped, they stand in a test split" if dropped else ""
        items = len(planner.corpus.items[task, split])
        out.print(f"{task}/{split}: {items} items{note}", markup=False)
    tokens = sum(run.tokens for run in plan.runs)
    answers = sum(answer.tokens for run in plan.runs for answer in run.answers)
    out.print(f"tokens: {tokens:,} in training, {answers:,} in scoring", markup=False)
    for line in size_lines(planner):
        out.print(line, markup=False)
    if plan.files is None:
        out.print(
            "the base model is not prepared yet, so ids and tokens are open; mixtune run does it",
            markup=False,
        )
        if study.unit != "rows":
            need = f"shares of {unit} need the base model's tokenizer, so the mixes are open, too"
            out.print(need, markup=False)


def _rows_got(row: MixRow) -> str:
    passes = f" (×{row.repeats:.3g})" if row.repeats > 1 else ""
    return f"{row.ingredient}:{row.rows_got}{passes}"


def _share_got(row: MixRow) -> str:
    """Its part of the mix as asked and got; both are there in a plan that has just been made."""
    stopped = ", used up" if row.exhausted == "stopped" else ""
    return f"{row.ingredient} {row.share_asked or 0:.1%} → {row.share_got or 0:.1%}{stopped}"


def show_mixes(out: Console, plan: Plan) -> None:
    """Per ingredient: what the pools hold, once, and what happens at their end."""
    seen: dict[str, MixRow] = {}
    for run in plan.runs:
        for row in run.mix:
            seen.setdefault(row.ingredient, row)
    rows = [
        (
            row.ingredient,
            row.rows_asked,
            row.rows_available,
            row.dropped_leaked,
            row.dropped_overlong,
            plan.study.ingredients[row.ingredient].when_exhausted,
        )
        for _, row in sorted(seen.items())
    ]
    dropped = ("dropped: leaked", "dropped: too long")
    columns = ("ingredient", "rows asked", "rows there are", *dropped, "when exhausted")
    out.print(table("Ingredients", columns, rows))


def plan_json(plan: Plan) -> dict[str, Any]:
    """The plan as one JSON object."""
    return {
        "study": plan.study.model_dump(mode="json"),
        "model": None if plan.files is None else {"digest": plan.files.digest},
        "runs": [{**asdict(run), "name": run.name} for run in plan.runs],
    }


def status_json(facts: StudyFacts) -> dict[str, Any]:
    """States of all runs and units as one JSON object."""
    return {
        "study": facts.study.name,
        "runs": [asdict(row) for row in run_rows(facts)],
        "units": [asdict(unit) for unit in facts.units.values()],
        "changes": facts.store.changes(),
        "test_reads": facts.store.test_reads(),
    }


def show_status(out: Console, facts: StudyFacts) -> None:
    """One line per run, and counts of states."""
    by_system: dict[str, list[Unit]] = {}
    for unit in (unit for unit in facts.units.values() if unit.kind not in EXTRA_KINDS):
        by_system.setdefault(unit.system, []).append(unit)
    rows = []
    for run in run_rows(facts):
        units = by_system.get(run.system, [])
        share = sum(unit.progress for unit in units) / max(len(units), 1)
        seed = "–" if run.seed is None else run.seed
        took = span(run.seconds) if run.seconds else "–"
        rows.append((run.id, run.cocktail, seed, run.state, f"{share:.0%}", took, run.error))
    columns = ("id", "cocktail", "seed", "state", "done", "took", "error")
    out.print(table(f"{facts.study.name}", columns, rows))
    for change in facts.store.changes():
        when = datetime.fromtimestamp(change["at"], UTC)
        added = f": {', '.join(change['added'])}" if change["added"] else ""
        line = f"{change['what']} {when:%Y-%m-%d %H:%M} UTC, {change['units']} units{added}"
        out.print(shorten(line, LONGEST), markup=False)
    counts = Counter(run.state for run in run_rows(facts))
    out.print(", ".join(f"{n} {state}" for state, n in sorted(counts.items())), markup=False)


def show_summary(
    out: Console, facts: StudyFacts, measured: SplitResults, form: str | None = None
) -> None:
    """Cocktail × task in main metric and form (or `form`), with the difference to the single."""
    tasks = facts.tasks
    main = {
        (metric.task, form or metric.form, metric.metric) for metric in facts.main_metrics.values()
    }
    cells: dict[str, dict[str, str]] = {}
    for row in measured.results:
        if row.seed is None and (row.task, row.form, row.metric) in main:
            cells.setdefault(row.cocktail, {})[row.task] = f"{row.value:.3f}"
    for mean in measured.means:
        if (mean.target, mean.form, mean.metric) in main:
            cells.setdefault(mean.subject, {})[mean.target] = f"{mean.value:.3f}"
    for change in measured.differences:
        place = (change.target, change.form, change.metric)
        if place in main and change.quantity == TO_SINGLE:
            cells[change.subject][change.target] += (
                f"  {change.value:+.3f} [{interval(change.low, change.high, '+')}]"
            )
    rows = [(name, *(values.get(task, "–") for task in tasks)) for name, values in cells.items()]
    note = f", {form} answers" if form else ""
    note += ", synthetic data" if any(task.synthetic for task in tasks.values()) else ""
    title = (
        f"{facts.study.name}, {measured.split}{note}: value, difference to the single task [95 %]"
    )
    out.print(table(title, ("system", *tasks), rows))
    out.print(f"base model: {facts.model_note}", soft_wrap=True, markup=False)
    show_training(out, facts)


def interval(low: float | None, high: float | None, sign: str = "") -> str:
    """The two ends of an interval; "too few" where there is none."""
    return "too few" if low is None or high is None else f"{low:{sign}.3f}, {high:{sign}.3f}"


def show_results(out: Console, facts: StudyFacts, rows: Sequence[Result], split: str) -> None:
    """One row per system × task × form × metric, main metric first."""
    synthetic = " (synthetic data)" if any(t.synthetic for t in facts.tasks.values()) else ""
    show_rows(out, rows, f"{facts.study.name}, {split}{synthetic}")
    show_training(out, facts)


def show_training(out: Console, facts: StudyFacts) -> None:
    """Unusual training settings of a study, if there are any."""
    if note := facts.training_note:
        out.print(f"{facts.study.name}: {note}", markup=False)


def show_rows(out: Console, results: Sequence[Result], title: str) -> None:
    """Results as a table."""
    rows = []
    for row in results:
        floor = "–" if row.floor is None else f"{row.floor:.3f}"
        seed = "–" if row.seed is None else str(row.seed)
        name = (row.task, row.form, row.metric, row.cocktail, seed)
        rows.append(
            (
                *name,
                f"{row.value:.3f}",
                interval(row.low, row.high),
                row.n,
                floor,
                f"{row.unparsed:.1%}",
            )
        )
    columns = (
        "task",
        "form",
        "metric",
        "system",
        "seed",
        "value",
        "95 %",
        "n",
        "floor",
        "unparsed",
    )
    out.print(table(title, columns, rows))
