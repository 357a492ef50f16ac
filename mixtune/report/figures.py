"""The numbers behind every figure and table of the page, as rows; and each as a CSV file.

Knows: which number stands where. Does not know: HTML, colours, how a number was computed.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields

from mixtune.analysis.effects import TO_SINGLE
from mixtune.analysis.results import BASE
from mixtune.metrics import METRICS
from mixtune.records import Estimate, MixRow, Result
from mixtune.report.inputs import ReportInput


@dataclass(frozen=True, slots=True)
class Cell:
    """A cocktail on a task: mean over seeds, and its difference to the step-matched single task.

    `reference` is the single's name, "" where there is none, and the cocktail's own name where it
    is itself the single. `at_floor`: the interval of the mean does not lie above the floor (None
    without an interval or a floor). `unread`: share of answers without a readable value.
    """

    form: str
    task: str
    metric: str
    cocktail: str
    value: float
    value_low: float | None
    value_high: float | None
    reference: str
    difference: float | None
    low: float | None
    high: float | None
    seeds: int
    n: int
    clusters: int
    at_floor: bool | None
    unread: float
    value_method: str
    method: str

    @property
    def shown(self) -> str:
        """Whether the difference's interval lies above 0, below 0 or holds it; "" without one."""
        if self.low is None or self.high is None:
            return ""
        return "above" if self.low > 0 else "below" if self.high < 0 else "open"


@dataclass(frozen=True, slots=True)
class Floor:
    """What a task's scores are read against, and which cocktails' runs do not rise above it.

    `at_floor` counts the runs, of `judged` with an interval, whose interval holds the floor or lies
    below it; `floor` is the larger of chance and majority.
    """

    form: str
    task: str
    metric: str
    chance: float | None
    majority: float | None
    base: float | None
    base_low: float | None
    base_high: float | None
    floor: float | None
    at_floor: int
    judged: int
    cocktails: str
    base_at_floor: bool | None


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One optimiser step of one run; loss is the mean over its examples."""

    run: str
    cocktail: str
    seed: int | None
    step: int
    loss: float
    lr: float
    grad_norm: float


@dataclass(frozen=True, slots=True)
class Count:
    """Data of one ingredient in one run: asked against got."""

    run: str
    cocktail: str
    seed: int | None
    mix: MixRow


@dataclass(frozen=True, slots=True)
class Answer:
    """The page's first sentence for one task: a cell and how it was picked."""

    task: str
    cell: Cell
    runner_up: Cell | None
    picked: str


def main_metrics(page: ReportInput) -> dict[str, str]:
    """Task → the metric that its results name first."""
    found: dict[str, str] = {}
    for row in page.results:
        found.setdefault(row.task, row.metric)
    return found


def cells(page: ReportInput) -> list[Cell]:
    """Every cocktail × task × form × metric of the page's split that has a mean."""
    singles = {
        (d.form, d.target, d.metric, d.subject): d
        for d in page.differences
        if d.quantity == TO_SINGLE and d.split == page.split
    }
    references = {(d.form, d.target, d.metric): d.reference for d in singles.values()}
    runs = _by_cell(page)
    found = []
    for mean in page.means:
        if mean.split != page.split or mean.target not in page.tasks:
            continue
        key = (mean.form, mean.target, mean.metric)
        reference = references.get(key, "")
        found.append(_cell(mean, singles.get((*key, mean.subject)), reference, runs))
    return found


def _by_cell(page: ReportInput) -> dict[tuple[str, str, str, str], list[Result]]:
    found: defaultdict[tuple[str, str, str, str], list[Result]] = defaultdict(list)
    for row in page.results:
        if row.split == page.split:
            found[row.form, row.task, row.metric, row.cocktail].append(row)
    return found


def _cell(
    mean: Estimate,
    single: Estimate | None,
    reference: str,
    runs: dict[tuple[str, str, str, str], list[Result]],
) -> Cell:
    own = runs.get((mean.form, mean.target, mean.metric, mean.subject), [])
    floor = own[0].floor if own else None
    return Cell(
        form=mean.form,
        task=mean.target,
        metric=mean.metric,
        cocktail=mean.subject,
        value=mean.value,
        value_low=mean.low,
        value_high=mean.high,
        reference=reference,
        difference=single.value if single else None,
        low=single.low if single else None,
        high=single.high if single else None,
        seeds=mean.seeds,
        n=mean.n,
        clusters=mean.clusters,
        at_floor=None if floor is None or mean.low is None else mean.low <= floor,
        unread=sum(row.unparsed for row in own) / len(own) if own else 0.0,
        value_method=mean.method,
        method=single.method if single else "",
    )


def floors(page: ReportInput) -> list[Floor]:
    """One row per task × form, on the main metric."""
    main = main_metrics(page)
    found: defaultdict[tuple[str, str], list[Result]] = defaultdict(list)
    for row in page.results:
        if row.split == page.split and row.metric == main[row.task] and row.task in page.tasks:
            found[row.form, row.task].append(row)
    return [_floor(form, task, rows) for (form, task), rows in found.items()]


def _floor(form: str, task: str, rows: Sequence[Result]) -> Floor:
    base = next((row for row in rows if row.cocktail == BASE and row.seed is None), None)
    runs = [row for row in rows if row.seed is not None and _on_floor(row) is not None]
    low = [row for row in runs if _on_floor(row)]
    return Floor(
        form=form,
        task=task,
        metric=rows[0].metric,
        chance=rows[0].chance,
        majority=rows[0].majority,
        base=base.value if base else None,
        base_low=base.low if base else None,
        base_high=base.high if base else None,
        floor=rows[0].floor,
        at_floor=len(low),
        judged=len(runs),
        cocktails=", ".join(dict.fromkeys(row.cocktail for row in low)),
        base_at_floor=_on_floor(base) if base else None,
    )


def _on_floor(row: Result) -> bool | None:
    return None if row.floor is None or row.low is None else row.low <= row.floor


def curves(page: ReportInput) -> list[CurvePoint]:
    """Every step of every run that has a log, runs in the page's order."""
    return [
        CurvePoint(run.id, run.cocktail, run.seed, s.step, s.loss, s.lr, s.grad_norm)
        for run in page.runs
        for s in page.curves.get(run.id, ())
    ]


def counts(page: ReportInput) -> list[Count]:
    """Data counts, in the order given; a row of no known run keeps its name and has no seed."""
    runs = {run.id: run for run in page.runs}
    found = []
    for name, mix in page.mixes:
        run = runs.get(name)
        found.append(Count(name, run.cocktail if run else name, run.seed if run else None, mix))
    return found


def answers(page: ReportInput) -> list[Answer]:
    """The best cocktail of each task in its first form and main metric, or the one chosen before.

    Ties go to the first by name. Tasks without a trained cell have no row.
    """
    main = main_metrics(page)
    everything = cells(page)
    found = []
    for task in page.tasks:
        forms = {c.form for c in everything if c.task == task}
        form = next((f for f in page.study.evaluate.forms if f in forms), None)
        own = [c for c in everything if (c.task, c.form, c.metric) == (task, form, main.get(task))]
        if not own:
            continue
        sign = -1 if METRICS[main[task]].higher_is_better else 1
        ranked = sorted(own, key=lambda c: (sign * c.value, c.cocktail))
        chosen = next((c for c in own if c.cocktail == page.chosen.get(task)), None)
        cell = chosen or ranked[0]
        runner_up = next((c for c in ranked if c is not cell), None)
        picked = "validation" if chosen else page.split
        found.append(Answer(task, cell, runner_up, picked))
    return found


def thinned(points: Sequence[CurvePoint], at_most: int) -> list[tuple[float, float]]:
    """(step, loss) averaged over consecutive stretches, so that at most so many are drawn."""
    stretch = -(-len(points) // at_most)
    parts = [points[i : i + stretch] for i in range(0, len(points), stretch)]
    return [
        (sum(p.step for p in part) / len(part), sum(p.loss for p in part) / len(part))
        for part in parts
    ]


def csv_files(page: ReportInput) -> dict[str, str]:
    """Each figure's numbers as CSV text by file name: matrix, floors, curves, counts, results."""
    mixes = [
        (c.run, c.cocktail, "" if c.seed is None else c.seed, *astuple(c.mix)) for c in counts(page)
    ]
    tables = {
        "matrix": (_names(Cell), [astuple(c) for c in cells(page)]),
        "floors": (_names(Floor), [astuple(f) for f in floors(page)]),
        "curves": (_names(CurvePoint), [astuple(c) for c in curves(page)]),
        "counts": (["run", "cocktail", "seed", *_names(MixRow)], mixes),
        "results": (_names(Result), [astuple(r) for r in page.results if r.split == page.split]),
    }
    return {f"{name}.csv": _csv(*table) for name, table in tables.items()}


def _names(row_type: type) -> list[str]:
    return [field.name for field in fields(row_type)]


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Floats in their shortest exact form, None as an empty field."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
