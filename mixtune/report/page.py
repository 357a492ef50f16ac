"""One HTML page from a study's estimates: no network, complete without its script.

Its figures and tables lie beside it as SVG and CSV files, which it links to.

Knows: the template, how many rows a page shows, the figures' stylesheet. Does not know: how
estimates were made, how a figure is drawn.
"""

import re
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from importlib import resources
from pathlib import Path
from statistics import fmean

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from mixtune.analysis.intervals import FEW_VARY, MIN_CLUSTERS
from mixtune.records import LENIENT, Result
from mixtune.report import draw, figures, plots, wording
from mixtune.report.figures import Answer, Cell
from mixtune.report.gather import ReportInput, gather
from mixtune.report.text import csv_files
from mixtune.results.questions import unanswered
from mixtune.results.study_results import StudyFacts
from mixtune.store.folder import Store
from mixtune.study.spec import training_note
from mixtune.tasks.metrics import METRICS

MAX_ROWS = 200
"""Rows of a long table on the page; the CSV files have all."""
MAX_COCKTAILS = 60
"""Cocktails on the page, in the plan's order, beside the best of each task."""
MAX_POINTS = 16
"""Points of a training curve; losses are averaged in between."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure; `name` of its SVG file, `table` of the CSV file with its numbers."""

    name: str
    svg: Markup
    table: str
    title: str = ""


def write_report(facts: StudyFacts, split: str, with_text: bool = False) -> Path:
    """Write the page of a split with its figures and tables beside it; returns the page's path."""
    page, store = gather(facts, split, with_text), facts.store
    for name, text in page_files(page).items():
        store.write_text(f"report/{split}/{name}", text)
    return store.write_text(str(page_path(store, split).relative_to(store.folder)), render(page))


def page_path(store: Store, split: str) -> Path:
    """Path of the page of a split."""
    name = "index.html" if split == "validation" else f"{split}.html"
    return store.folder / "report" / name


def page_files(page: ReportInput) -> dict[str, str]:
    """Files beside the page by name: each table as CSV, each figure as SVG."""
    drawn = [d for group in drawings(page, figures.cells(page)).values() for d in group]
    return csv_files(page) | {f"{d.name}.svg": standalone(d.svg) for d in drawn}


def drawings(page: ReportInput, shown: Sequence[Cell]) -> dict[str, list[Drawing]]:
    """Every figure of the cells that are shown, by the part of the page that it is in."""
    cocktails = {cell.cocktail for cell in shown}
    points = [point for point in figures.curves(page) if point.cocktail in cocktails]
    return {
        "heat": _heat_maps(page, shown),
        "forest": [
            Drawing(_name("task", i, forest.task), draw.forest_plot(forest), "matrix")
            for i, forest in enumerate(plots.forests(page, shown), 1)
        ],
        "curves": [
            Drawing(_name("curve", i, chart.cocktail), draw.curve_chart(chart), "curves")
            for i, chart in enumerate(plots.charts(points, MAX_POINTS), 1)
        ],
        "claims": [Drawing("claims", draw.claims_plot(page.claims, page.tasks), "claims")]
        if page.claims
        else [],
        "tuning": [
            Drawing(_name("tuning", i, t), draw.tuning_chart(page.tasks[t], arms), "estimates")
            for i, (t, arms) in enumerate(plots.curves(page).items(), 1)
        ],
        "lengths": [Drawing("lengths", draw.length_plot(page.lengths), "lengths")]
        if page.lengths
        else [],
    }


def _name(kind: str, number: int, text: str) -> str:
    return f"{kind}-{number}-{wording.slug(text)}"


def _shown(cells: Sequence[Cell], answers: Sequence[Answer]) -> list[Cell]:
    """The cells on the page: those of the first cocktails, and of the best of each task."""
    shown = set(list(dict.fromkeys(cell.cocktail for cell in cells))[:MAX_COCKTAILS])
    shown |= {answer.cell.cocktail for answer in answers if answer.cell}
    return [cell for cell in cells if cell.cocktail in shown]


def _heat_maps(page: ReportInput, shown: Sequence[Cell]) -> list[Drawing]:
    main = figures.main_metrics(page)
    return [
        Drawing(
            f"matrix-{wording.slug(heat.form)}",
            draw.heat_map(heat, page.tasks, main, f"h{number}"),
            "matrix",
            f"{heat.form} answers",
        )
        for number, heat in enumerate(plots.heats(page, shown))
    ]


def render(page: ReportInput) -> str:
    """The page as HTML text; every name, note and error on it is escaped."""
    cells, answers = figures.cells(page), figures.answers(page)
    shown, main = _shown(cells, answers), figures.main_metrics(page)
    counts, clean, unread = figures.counts(page), plots.clean(page), _unread(page)
    others = [cell for cell in shown if cell.metric != main[cell.task]]
    failures = [run for run in page.runs if run.state == "failed" or run.error]
    matched = [row for row in page.data if row.matched]
    tables = (page.runs, page.judged, matched, counts, clean, unread, others)
    return _template().render(
        page=page,
        answers=answers,
        bars={a.task: draw.gap_bar(a.cell) for a in answers if a.cell},
        summary=wording.summary(answers, page.confirms),
        exploratory=_exploratory(page),
        confirmed=plots.said_of_claims(page.claims),
        chance=plots.chance(page),
        ties=plots.near_ties(page),
        effects=plots.effects(page),
        clean=clean[:MAX_ROWS],
        judged=plots.judged(page.judged[:MAX_ROWS]),
        matched=matched[:MAX_ROWS],
        floors=figures.floors(page),
        pooled_f1=any(METRICS[row.metric].counts == "labels" for row in page.results),
        listed_f1=any(METRICS[row.metric].counts == "items" for row in page.results),
        matrices=plots.heats(page, shown),
        others=others[:MAX_ROWS],
        main=main,
        unread=unread[:MAX_ROWS],
        lenient=any(row.form == LENIENT for row in page.results),
        figures=drawings(page, shown),
        max_rows=MAX_ROWS,
        max_cocktails=MAX_COCKTAILS,
        truncated=len(shown) < len(cells) or any(len(rows) > MAX_ROWS for rows in tables),
        brought=figures.brought(page),
        seeds=list(dict.fromkeys(point.seed for point in figures.curves(page))),
        counts=counts[:MAX_ROWS],
        shared=any(row.mix.share_asked is not None for row in counts),
        runs=page.runs[:MAX_ROWS],
        failures=failures[:MAX_ROWS],
        failed=len(failures),
        methods=sorted({m for c in shown for m in (c.value_method, c.method) if m}),
        training=training_note(page.study.train, page.study.flaws),
        budget=wording.budget(page.study.budget),
        done=sum(run.state == "done" for run in page.runs),
        clustered=sorted({r.task for r in page.results if r.clusters < r.n}),
    )


def _exploratory(page: ReportInput) -> str:
    """Why the first sentences are no confirmed claim."""
    if page.confirms:
        return (
            "What these sentences speak of was chosen on validation and is read on test, with the "
            "seeds that it was chosen by. A confirmed claim needs fresh seeds."
        )
    return (
        "These sentences are exploratory: the best was picked and is read on the same data "
        f"({page.split}). The best of several always looks better than it is."
    )


def _unread(page: ReportInput) -> list[tuple[str, str, dict[str, tuple[float, float]]]]:
    """(form, cocktail, task → mean share of unread answers and mean value), where any is unread.

    The lenient reading is there wherever a strict one failed.
    """
    main = figures.main_metrics(page)
    runs: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for row in page.results:
        if row.split == page.split and row.metric == main[row.task]:
            runs.setdefault((row.form, row.cocktail), {}).setdefault(row.task, []).append(row)
    means = {
        key: {
            task: (fmean(r.unparsed for r in own), fmean(r.value for r in own))
            for task, own in by_task.items()
        }
        for key, by_task in runs.items()
    }
    failed = {key for key, own in means.items() if any(unread for unread, _ in own.values())}
    failed |= {(LENIENT, cocktail) for _, cocktail in failed}
    return [(*key, by_task) for key, by_task in means.items() if key in failed]


@lru_cache(maxsize=1)
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_safe,
    )
    environment.filters |= {
        "num": wording.number,
        "signed": wording.signed,
        "p_value": wording.p_value,
        "percent": wording.percent,
        "seconds": wording.seconds,
        "verdict": wording.verdict,
        "given": wording.given,
        "headline": wording.headline,
        "lines": lambda text: escape(wording.lines(text)),
        "named": named,
        "some": wording.some,
        "unanswered": unanswered,
    }
    script = file("page.js")
    environment.globals |= {
        "css": Markup(file("figure.css") + file("page.css")),
        "script": Markup(script),
        "script_hash": Markup(b64encode(sha256(script.encode()).digest()).decode()),
        "ends": wording.ends,
        "min_clusters": MIN_CLUSTERS,
        "few_vary": FEW_VARY,
    }
    return environment.from_string(file("page.html.j2"))


def _safe(value: object) -> object:
    """A value as the template writes it: text without control characters, of bounded length."""
    return value if isinstance(value, Markup) or type(value) is not str else wording.plain(value)


def named(name: str) -> Markup:
    """A cocktail's or run's name: may break behind `+`; a long one cut, its start as a tooltip."""
    shown = Markup("+<wbr>").join(wording.plain(name, wording.LONGEST_NAME).split("+"))
    if len(name) <= wording.LONGEST_NAME:
        return shown
    return Markup('<span title="{}">{}</span>').format(wording.plain(name, 300), shown)


NAMESPACE = "http://www.w3.org/2000/svg"


def standalone(svg: str) -> str:
    """An SVG of the page as a file of its own: in light colours, on white, its style inside.

    Colours are written out, because drawing programs do not know variables of stylesheets.
    """
    head, rest = svg.split(">", 1)
    head = re.sub(r' style="[^"]*"', "", head).replace("<svg", f'<svg xmlns="{NAMESPACE}"', 1)
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return f"{head}>\n<style>\n{_light()}</style>\n{background}{rest}\n"


def file(name: str) -> str:
    """One of the page's own parts."""
    return resources.files("mixtune.report.templates").joinpath(name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _light() -> str:
    """The figures' rules with every colour written out as in light mode."""
    css = re.sub(r"light-dark\((#\w+), #\w+\)", r"\1", file("figure.css"))
    colours = dict(re.findall(r"(--[\w-]+): (#\w+)", css))
    rules = css[css.index("}") + 1 :].strip() + "\n"
    return re.sub(r"var\((--[\w-]+)\)", lambda match: colours[match[1]], rules)
