"""The page's numbers as text: JSON with every row, Markdown with what a reader looks for first.

Knows: the page's input, its tables. Does not know: HTML, figures, how a number was computed.

The numbers of every figure and table as CSV text.

Knows: which rows go into which file. Does not know: HTML, how a number was computed.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from operator import attrgetter
from typing import Any

from pydantic import BaseModel

from mixtune.analysis.effects import TO_SINGLE
from mixtune.records import Claim, Estimate, Judged, LengthRow, MixRow, Result, RunRow
from mixtune.report import wording
from mixtune.report.figures import (
    Cell,
    CurvePoint,
    Floor,
    answers,
    cells,
    counts,
    curves,
    floors,
    main_metrics,
)
from mixtune.report.gather import ReportInput
from mixtune.report.plots import JUDGED, Clean, Portion, clean, judged, portions, verdicts
from mixtune.results.questions import unanswered


def as_json(page: ReportInput) -> str:
    """Every part of the page by its name, rows as objects, as JSON text."""
    return json.dumps({f.name: _plain(getattr(page, f.name)) for f in fields(page)}, indent=1)


def _plain(value: Any) -> Any:  # noqa: ANN401 - any part of a page
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def as_markdown(page: ReportInput) -> str:
    """Headings, sentences and tables: answers, claims, differences, floors, runs that failed."""
    parts = [
        _head(page),
        *_claims(page),
        *_questions(page),
        *(_task(page, name) for name in page.tasks),
        *_judged(page),
        _floors(page),
        _runs(page),
    ]
    return "\n\n".join(part for part in parts if part)


def _head(page: ReportInput) -> str:
    seeds = ", ".join(map(str, page.study.seeds))
    summary = wording.summary(answers(page), page.confirms)
    made_up = "The data is synthetic.\n\n" if page.synthetic else ""
    return (
        f"# {_cell(page.study.name)}, {page.split}\n\n{made_up}"
        + (f"{_cell(summary)}\n\n" if summary else "")
        + f"- base model: {_cell(page.model_note)}\n- seeds: {seeds}\n"
        + f"- test scores were looked at {page.test_reads} times\n"
        + f"- mixtune {_cell(page.version)}, {_cell(page.created)}"
    )


def _claims(page: ReportInput) -> list[str]:
    """Claims with their verdicts; nothing where the page has none."""
    claims: Sequence[Any] = getattr(page, "claims", ())
    lines = [f"- **{_cell(c.verdict)}**: {_cell(c.sentence)} {_cell(c.reason)}" for c in claims]
    return ["## Claims\n\n" + "\n".join(map(str.rstrip, lines))] if lines else []


def _questions(page: ReportInput) -> list[str]:
    answered = [question for question in page.questions if question.answered]
    lines = [f"- {_cell(question.title)} {_cell(question.answer)}" for question in answered]
    lines += [f"- {_cell(line)}"] if (line := unanswered(page.questions)) else []
    return ["## Questions\n\n" + "\n".join(lines)] if lines else []


def _task(page: ReportInput, task: str) -> str:
    """A task's cocktails in its main form and metric, best first as the page has them."""
    form, metric = page.main_forms[task], main_metrics(page).get(task)
    own = [c for c in cells(page) if (c.task, c.form, c.metric) == (task, form, metric)]
    if not own:
        return f"## {_cell(page.tasks[task])}\n\nNo finished run has scores."
    tests = {row.subject: row for row in _differences(page, own[0])}
    columns = ("cocktail", metric, "95 %", "minus single", "95 %", "p", "minus base", "95 %",
               "n", "seeds")  # fmt: skip
    rows = [_row(cell, tests.get(cell.cocktail)) for cell in sorted(own, key=lambda c: -c.value)]
    count = f"The highest of {len(own)} cocktails{_by_chance(page, own[0])}."
    title = f"## {_cell(page.tasks[task])} ({_cell(task)}, {form})"
    return f"{title}\n\n{_table(columns, rows)}\n\n{count}"


def _by_chance(page: ReportInput, cell: Cell) -> str:
    """Expected gain of the best of N by chance alone, where it was estimated."""
    rows: Sequence[Estimate] = getattr(page, "estimates", ())
    key = ("best-of-n", cell.task, page.split, cell.form, cell.metric)
    for row in rows:
        if (row.quantity, row.target, row.split, row.form, row.metric) == key:
            gain = f"{wording.signed(row.value)} {wording.ends(row.low, row.high, True)}"
            return f" would be {gain} above the others by chance alone"
    return " is partly so by chance"


def _differences(page: ReportInput, cell: Cell) -> Iterable[Estimate]:
    """The rows that the cells' differences to the single task come from."""
    wanted_key = (cell.task, page.split, cell.form, cell.metric)
    for row in page.differences:
        key = (row.target, row.split, row.form, row.metric)
        if key == wanted_key and row.quantity == TO_SINGLE:
            yield row


def _row(cell: Cell, test: Estimate | None) -> tuple[object, ...]:
    single = ("–", "–") if cell.difference is None else (
        wording.signed(cell.difference), wording.ends(cell.low, cell.high, True)
    )  # fmt: skip
    base = ("–", "–") if cell.to_base is None else (
        wording.signed(cell.to_base), wording.ends(cell.base_low, cell.base_high, True)
    )  # fmt: skip
    p = wording.p_value(None if test is None else test.p)
    ends = wording.ends(cell.value_low, cell.value_high)
    value = wording.number(cell.value)
    return (cell.cocktail, value, ends, *single, p, *base, cell.n, cell.seeds)


def _judged(page: ReportInput) -> Iterable[str]:
    """Judgements of free answers; nothing where there are none."""
    for description, own in judged(page.judged).items():
        rows = [verdicts(row, wording.ends(row.low, row.high)) for row in own]
        yield f"## Judged by a model\n\n{_cell(description)}.\n\n{_table(JUDGED, rows)}"


def _floors(page: ReportInput) -> str:
    columns = ("task", "form", "metric", "chance", "majority", "base", "runs not above")
    rows = [
        (
            floor.task,
            floor.form,
            floor.metric,
            wording.number(floor.chance),
            wording.number(floor.majority),
            wording.number(floor.base),
            floor.missing or f"{floor.not_above} of {floor.judged}",
        )
        for floor in floors(page)
    ]
    return "## Floors\n\n" + _table(columns, rows) if rows else ""


def _runs(page: ReportInput) -> str:
    """Number of runs per state, and each run that is not done."""
    states: dict[str, int] = {}
    for run in page.runs:
        states[run.state] = states.get(run.state, 0) + 1
    counts = ", ".join(f"{count} {_cell(state)}" for state, count in sorted(states.items()))
    lines = [
        f"- {_cell(run.cocktail)}, seed {'–' if run.seed is None else run.seed} ({_cell(run.id)}): "
        f"{_cell(run.state)}{_cell(f', {run.error}') if run.error else ''}"
        for run in page.runs
        if run.state != "done"
    ]
    return "\n".join([f"## Runs\n\n{counts or 'none'}.", *([""] if lines else []), *lines])


def _table(columns: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)


def _cell(value: object) -> str:
    """Text that stays inside its cell and is no markup: one line, bars, tags and links escaped."""
    text = wording.plain(str(value))
    for sign in ("\\", "|", "<", "`", "*"):
        text = text.replace(sign, f"\\{sign}")
    text = text.replace("](", "]\\(")
    return " ".join(text.split())


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
