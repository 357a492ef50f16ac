"""One self-contained HTML page from a study's estimates: no network, no script.

Knows: the template, how a number is written. Does not know: how estimates were made, stores.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources

from jinja2 import Environment, StrictUndefined, Template

from mixtune.analysis.resample import FEW_VARY, MIN_CLUSTERS
from mixtune.report import figures
from mixtune.report.figures import Cell, CurvePoint
from mixtune.report.inputs import DataRow, ReportInput, RunRow

__all__ = ["DataRow", "ReportInput", "RunRow", "render"]

CHART = (220, 110)
"""Width and height of a training curve's box, in its own units."""
POINTS = 50
"""Points drawn per curve; the CSV has every step."""
SMALLEST_SCALE = 0.02
"""Differences under two points are never stretched to full colour."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """One form's matrix: `rows` cocktails, `at` (cocktail, task) → cell, the widest difference."""

    form: str
    rows: list[str]
    at: dict[tuple[str, str], Cell]
    scale: float
    reach: float


@dataclass(frozen=True, slots=True)
class Chart:
    """One cocktail's training curves: a polyline's points per seed, the axes' ends."""

    cocktail: str
    lines: list[tuple[int | None, str]]
    steps: int
    first: float
    last: float


def render(page: ReportInput) -> str:
    """The page as text; every name, note and error on it is escaped."""
    everything = figures.cells(page)
    main = figures.main_metrics(page)
    return _template().render(
        page=page,
        answers=figures.answers(page),
        exploratory=_exploratory(page),
        floors=figures.floors(page),
        pooled_f1=any(row.metric.endswith("-f1") for row in page.results),
        matrices=_matrices(page, [c for c in everything if c.metric == main[c.task]]),
        others=[c for c in everything if c.metric != main[c.task]],
        main=main,
        unread=_unread(page),
        charts=_charts(figures.curves(page)),
        chart=CHART,
        counts=figures.counts(page),
        failures=[run for run in page.runs if run.state == "failed" or run.error],
        methods=sorted({m for c in everything for m in (c.value_method, c.method) if m}),
        done=sum(run.state == "done" for run in page.runs),
        clustered=sorted({r.task for r in page.results if r.clusters < r.n}),
    )


def _exploratory(page: ReportInput) -> str:
    """Why the first sentences are no confirmed claim."""
    if page.confirms:
        return (
            "chosen on validation and read on test, with the seeds that it was chosen by: "
            "a confirmed claim needs fresh seeds"
        )
    return f"exploratory: the best was picked and is read on the same data ({page.split})"


def _matrices(page: ReportInput, shown: Sequence[Cell]) -> list[Matrix]:
    """One per form, the tasks' main forms first."""
    forms = {c.form for c in shown}
    main = [page.main_forms[task] for task in page.tasks if page.main_forms[task] in forms]
    found = []
    for form in dict.fromkeys([*main, *(c.form for c in shown)]):
        own = [c for c in shown if c.form == form]
        gaps = [abs(c.difference) for c in own if c.difference is not None]
        ends = [abs(end) for c in own for end in (c.low, c.high) if end is not None]
        found.append(
            Matrix(
                form,
                list(dict.fromkeys(c.cocktail for c in own)),
                {(c.cocktail, c.task): c for c in own},
                max([SMALLEST_SCALE, *gaps]),
                max([SMALLEST_SCALE, *gaps, *ends]),
            )
        )
    return found


def _unread(page: ReportInput) -> list[tuple[str, str, dict[str, float]]]:
    """(form, cocktail, task → mean share of answers that could not be read), where any is."""
    main = figures.main_metrics(page)
    rates: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in page.results:
        if row.split == page.split and row.metric == main[row.task]:
            by_task = rates.setdefault((row.form, row.cocktail), {})
            by_task.setdefault(row.task, []).append(row.unparsed)
    means = [
        (form, cocktail, {task: sum(v) / len(v) for task, v in by_task.items()})
        for (form, cocktail), by_task in rates.items()
    ]
    return [row for row in means if any(row[2].values())]


def _charts(points: Sequence[CurvePoint]) -> list[Chart]:
    """Small multiples on common axes, a chart per cocktail and a line per run."""
    if not points:
        return []
    runs: dict[str, list[CurvePoint]] = {}
    for point in points:
        runs.setdefault(point.run, []).append(point)
    drawn = {run: figures.thinned(own, POINTS) for run, own in runs.items()}
    steps = max(point.step for point in points)
    top = max(loss for line in drawn.values() for _, loss in line) or 1.0
    charts: dict[str, list[str]] = {}
    for run, own in runs.items():
        charts.setdefault(own[0].cocktail, []).append(run)
    return [
        Chart(
            cocktail,
            [(runs[run][0].seed, _polyline(drawn[run], steps, top)) for run in names],
            steps,
            sum(drawn[run][0][1] for run in names) / len(names),
            sum(drawn[run][-1][1] for run in names) / len(names),
        )
        for cocktail, names in charts.items()
    ]


def _polyline(line: Sequence[tuple[float, float]], steps: int, top: float) -> str:
    width, height = CHART
    return " ".join(
        f"{step / max(1, steps) * width:.1f},{height - loss / top * height:.1f}"
        for step, loss in line
    )


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "num": number,
        "signed": signed,
        "percent": percent,
        "seconds": seconds,
        "verdict": verdict,
        "given": given,
    }
    environment.globals |= {
        "css": _file("page.css"),
        "ends": ends,
        "min_clusters": MIN_CLUSTERS,
        "few_vary": FEW_VARY,
    }
    return environment.from_string(_file("page.html.j2"))


def _file(name: str) -> str:
    return resources.files("mixtune.report").joinpath(name).read_text(encoding="utf-8")


def number(value: float | None) -> str:
    """Three decimals; a dash for nothing."""
    return "–" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    """Three decimals with a sign, a real minus; a dash for nothing."""
    return "–" if value is None else f"{value:+.3f}".replace("-", "−")


def percent(value: float) -> str:
    """A share in per cent; what is not nothing never reads as 0 %."""
    return "<0.1 %" if 0 < value < 0.001 else f"{100 * value:.1f} %"


def ends(low: float | None, high: float | None, sign: bool = False) -> str:
    """An interval, or "too few" where there is none."""
    write = signed if sign else number
    return "too few" if low is None or high is None else f"[{write(low)}, {write(high)}]"


def seconds(value: float | None) -> str:
    """A duration in seconds, or minutes from two on; a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:.1f} s" if value < 120 else f"{value / 60:.1f} min"


def given(cell: Cell) -> str:
    """What the seeds behind a difference limit: shared by fewer than the mean has, or one only."""
    seeds = cell.difference_seeds
    if seeds is None:
        return ""
    shared = f", over {seeds} shared {'seed' if seeds == 1 else 'seeds'}"
    return (shared if seeds < cell.seeds else "") + (", given this run" if seeds == 1 else "")


def verdict(cell: Cell) -> str:
    """What the difference's interval says about the cell against its single task."""
    said = {
        "above": "its 95 % interval lies above 0",
        "below": "its 95 % interval lies below 0",
        "open": "its 95 % interval includes 0, so the two cannot be told apart",
        "": "there are too few clusters for an interval",
    }
    return said[cell.shown]
