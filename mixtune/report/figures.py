"""The numbers behind every figure and table of the page, as rows."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mixtune.analysis.effects import TO_BASE, TO_SINGLE
from mixtune.analysis.measures import BASE, MAJORITY
from mixtune.records import LENIENT, Estimate, MixRow, Result
from mixtune.report.gather import ReportInput
from mixtune.tasks.metrics import METRICS


@dataclass(frozen=True, slots=True)
class Cell:
    """A cocktail on a task: mean over seeds, and its differences to the single task and the base.

    `reference` is the single's name, "" where there is none, and the cocktail's own name where it
    is itself the single. `difference`, `low`, `high` and `difference_seeds` (the seeds that both
    sides have) are against it, `adjusted` is its p adjusted over all cells; `to_base` and its ends
    are against the untuned base. `against_floor`: see `against_floor`, for the interval of the
    mean. `unread`: share of answers without a readable value. A system that was brought in from
    elsewhere has no differences, and 0 `seeds`.
    """

    form: str
    task: str
    metric: str
    cocktail: str
    value: float
    value_low: float | None
    value_high: float | None
    reference: str = ""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    seeds: int = 0
    difference_seeds: int | None = None
    adjusted: float | None = None
    to_base: float | None = None
    base_low: float | None = None
    base_high: float | None = None
    n: int = 0
    clusters: int = 0
    against_floor: str = ""
    unread: float = 0.0
    value_method: str = ""
    method: str = ""

    @property
    def is_single(self) -> bool:
        """True for the single-task cell that the others on its task are compared with."""
        return bool(self.seeds) and self.cocktail in (self.reference, self.task)

    @property
    def floored(self) -> bool:
        """True if its interval does not lie above the floor."""
        return self.against_floor in ("below", "not above")

    @property
    def shown(self) -> str:
        """Position of the difference's interval: "above" 0, "below" it, "open"; "" without one."""
        return _side(self.low, self.high)

    @property
    def shown_to_base(self) -> str:
        """The same of the difference to the base."""
        return _side(self.base_low, self.base_high)


def _side(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ""
    return "above" if low > 0 else "below" if high < 0 else "open"


@dataclass(frozen=True, slots=True)
class Answer:
    """The page's first sentence for one task: the best cell and the next.

    On a page that reads on test what was chosen on validation it is the cell of what was chosen,
    None where that has no scores, and nobody comes second: a runner-up would be picked on test.
    """

    task: str
    cell: Cell | None
    runner_up: Cell | None = None


@dataclass(frozen=True, slots=True)
class Floor:
    """Reference levels of a task, and the runs that do not rise above them.

    `not_above` counts the runs, of `judged` with an interval, whose interval does not lie above the
    floor; `below` those of them whose interval lies wholly below it. `cocktails` and
    `cocktails_below` name them. `floor` is the larger of chance and majority; without a majority
    class there is none. `missing` says why nothing is judged ("" where something is).
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
    not_above: int
    below: int
    judged: int
    cocktails: str
    cocktails_below: str
    base_against_floor: str
    missing: str


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


Key = tuple[str, str, str, str]
"""Form, task, metric and cocktail of a cell."""


def cells(page: ReportInput) -> list[Cell]:
    """Every cocktail × task × form × metric of the page's split; not the lenient readings."""
    singles, bases = against(page, TO_SINGLE), against(page, TO_BASE)
    references = {key[:3]: row.reference for key, row in singles.items()}
    runs: defaultdict[Key, list[Result]] = defaultdict(list)
    for row in page.split_results:
        runs[row.form, row.task, row.metric, row.cocktail].append(row)
    rows = []
    for mean in page.means:
        if mean.split != page.split or mean.form == LENIENT or mean.target not in page.tasks:
            continue
        key = (mean.form, mean.target, mean.metric, mean.subject)
        cell = _cell(mean, key, runs[key])
        cell = replace(cell, reference=references.get(key[:3], ""), seeds=mean.seeds)
        if single := singles.get(key):
            cell = replace(cell, difference=single.value, low=single.low, high=single.high)
            cell = replace(cell, difference_seeds=single.seeds, method=single.method)
            cell = replace(cell, adjusted=single.adjusted)
        if base := bases.get(key):
            cell = replace(cell, to_base=base.value, base_low=base.low, base_high=base.high)
        rows.append(cell)
    return rows


def against(page: ReportInput, quantity: str) -> dict[Key, Estimate]:
    """Each cell's difference of a quantity, on the page's split."""
    return {
        (row.form, row.target, row.metric, row.subject): row
        for row in page.differences
        if (row.quantity, row.split) == (quantity, page.split)
    }


def _cell(row: Estimate | Result, key: Key, runs: Sequence[Result]) -> Cell:
    """A cell that is compared with nothing but the floor."""
    return Cell(
        *key,
        value=row.value,
        value_low=row.low,
        value_high=row.high,
        n=row.n,
        clusters=row.clusters,
        against_floor=against_floor(row.low, row.high, runs[0].floor if runs else None),
        unread=sum(run.unparsed for run in runs) / max(1, len(runs)),
        value_method=row.method,
    )


def brought(page: ReportInput) -> list[Cell]:
    """Systems that were brought in from elsewhere, each task in its main metric."""
    return [
        _cell(row, (row.form, row.task, row.metric, row.cocktail), [row])
        for row in page.main_results
        if row.seed is None and row.form != LENIENT and row.cocktail not in (MAJORITY, BASE)
    ]


def answers(page: ReportInput) -> list[Answer]:
    """The best cocktail of each task in its main form and metric, or the one chosen before.

    Ties go to the first by name. A task without a trained cell has no row, except on a page that
    reads on test what was chosen on validation: there every task has one.
    """
    own: dict[str, list[Cell]] = {task: [] for task in page.tasks}
    for cell in cells(page):
        if page.is_main(cell.task, cell.form, cell.metric):
            own[cell.task].append(cell)
    if page.confirms:
        return [
            Answer(task, next((c for c in own[task] if c.cocktail == page.chosen.get(task)), None))
            for task in page.tasks
        ]
    return [Answer(task, *best_first(own[task])[:2]) for task in page.tasks if own[task]]


def best_first(own: Iterable[Cell]) -> list[Cell]:
    """Cells of one task and metric, ties by name."""

    def rank(cell: Cell) -> tuple[float, str]:
        return -cell.value if METRICS[cell.metric].higher_is_better else cell.value, cell.cocktail

    return sorted(own, key=rank)


def against_floor(low: float | None, high: float | None, floor: float | None) -> str:
    """Position of an interval: "above" the floor, "below" it, or "not above" where it includes it.

    "" without an interval or a floor.
    """
    if low is None or high is None or floor is None:
        return ""
    return "above" if low > floor else "below" if high < floor else "not above"


def floors(page: ReportInput) -> list[Floor]:
    """One row per task × form, on the main metric."""
    by_task: defaultdict[tuple[str, str], list[Result]] = defaultdict(list)
    for row in page.main_results:
        if row.form != LENIENT:
            by_task[row.form, row.task].append(row)
    return [_floor(form, task, rows) for (form, task), rows in by_task.items()]


def _floor(form: str, task: str, rows: Sequence[Result]) -> Floor:
    base = next((row for row in rows if row.cocktail == BASE and row.seed is None), None)
    sides = {row.system: against_floor(row.low, row.high, row.floor) for row in rows}
    runs = [row for row in rows if row.seed is not None and sides[row.system]]
    low = [row for row in runs if sides[row.system] != "above"]
    below = [row for row in low if sides[row.system] == "below"]
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
        not_above=len(low),
        below=len(below),
        judged=len(runs),
        cocktails=", ".join(dict.fromkeys(row.cocktail for row in low)),
        cocktails_below=", ".join(dict.fromkeys(row.cocktail for row in below)),
        base_against_floor=sides[base.system] if base else "",
        missing="" if runs else _why_none(rows),
    )


def _why_none(rows: Sequence[Result]) -> str:
    """Why no run of a task is judged against a floor."""
    if rows[0].floor is None:
        return "no floor" if rows[0].chance is None else "no majority class was scored"
    return "too few to say" if any(row.seed is not None for row in rows) else "no run has scores"


def curves(page: ReportInput) -> list[CurvePoint]:
    """Every step of every run that has a log, runs in the page's order."""
    return [
        CurvePoint(run.id, run.cocktail, run.seed, s.step, s.loss, s.lr, s.grad_norm)
        for run in page.runs
        for s in page.curves.get(run.id, ())
    ]


def counts(page: ReportInput) -> list[Count]:
    """Data counts, in the order given; a row of no known run keeps its name and has no seed."""
    runs = {run.id: (run.cocktail, run.seed) for run in page.runs}
    return [Count(name, *runs.get(name, (name, None)), mix) for name, mix in page.mixes]
