"""A study's estimates as one HTML page, as Markdown and as JSON; figures and tables as files.

The page needs no network and is complete without its script. Figures and tables lie beside it as
SVG and CSV files, which it links to.
"""

import csv
import io
import json
import re
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, fields
from functools import lru_cache
from hashlib import sha256
from importlib import resources
from operator import attrgetter
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup, escape
from pydantic import BaseModel

from mixtune.analysis.effects import TO_SINGLE
from mixtune.analysis.intervals import FEW_VARY, MIN_CLUSTERS
from mixtune.records import LENIENT, Claim, Estimate, MixRow, Result
from mixtune.report import draw, figures, plots, wording
from mixtune.report.figures import Cell, CurvePoint, Floor
from mixtune.report.gather import LengthRow, ReportInput, gather
from mixtune.report.plots import Clean, Portion
from mixtune.results.judgements import Judged
from mixtune.results.questions import basis, unanswered
from mixtune.results.study_results import RunRow, StudyFacts
from mixtune.store.files import plain_cell
from mixtune.store.folder import Store
from mixtune.study.spec import training_note
from mixtune.tasks.metrics import METRICS

MAX_ROWS = 200
"""Rows of a long table on the page; the CSV files have all."""
MAX_COCKTAILS = 60
"""Cocktails on the page, in the plan's order, beside the best of each task."""
MAX_POINTS = 16
"""Points of a training curve; losses are averaged in between."""


class Drawing(NamedTuple):
    """A figure: part of the page, `name` of its SVG file, `table` of the CSV with its numbers."""

    part: str
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
    drawn = drawings(page, figures.cells(page))
    return csv_files(page) | {f"{d.name}.svg": standalone(d.svg) for d in drawn}


def drawings(page: ReportInput, shown: Sequence[Cell]) -> Iterator[Drawing]:
    """Every figure of the cells that are shown."""
    slug = wording.slug
    for i, heat in enumerate(plots.heats(page, shown)):
        svg = draw.heat_map(heat, page.tasks, page.main_metrics, f"h{i}")
        yield Drawing("heat", f"matrix-{slug(heat.form)}", svg, "matrix", f"{heat.form} answers")
    for i, forest in enumerate(plots.forests(page, shown), 1):
        svg = draw.forest_plot(forest)
        yield Drawing("forest", f"task-{i}-{slug(forest.task)}", svg, "matrix")
    cocktails = {cell.cocktail for cell in shown}
    points = [point for point in figures.curves(page) if point.cocktail in cocktails]
    for i, chart in enumerate(plots.charts(points, MAX_POINTS), 1):
        svg = draw.curve_chart(chart)
        yield Drawing("curves", f"curve-{i}-{slug(chart.cocktail)}", svg, "curves")
    for i, (task, arms) in enumerate(plots.tuning_curves(page).items(), 1):
        svg = draw.tuning_chart(page.tasks[task], arms)
        yield Drawing("tuning", f"tuning-{i}-{slug(task)}", svg, "estimates")
    if page.claims:
        yield Drawing("claims", "claims", draw.claims_plot(page.claims, page.tasks), "claims")
    if page.lengths:
        yield Drawing("lengths", "lengths", draw.length_plot(page.lengths), "lengths")


# ---- HTML ---------------------------------------------------------------------------------------


def render(page: ReportInput) -> str:
    """The page as HTML text; every name, note and error on it is escaped."""
    cells, answers = figures.cells(page), figures.answers(page)
    # The cells of the first cocktails, and of the best of each task.
    cocktails = set(list(dict.fromkeys(cell.cocktail for cell in cells))[:MAX_COCKTAILS])
    cocktails |= {answer.cell.cocktail for answer in answers if answer.cell}
    shown = [cell for cell in cells if cell.cocktail in cocktails]
    counts, clean, unread = figures.counts(page), plots.clean(page), _unread(page)
    further = [cell for cell in shown if cell.metric != page.main_metrics[cell.task]]
    failures = [run for run in page.runs if run.state == "failed" or run.error]
    matched = [row for row in page.data if row.matched]
    drawn: defaultdict[str, list[Drawing]] = defaultdict(list)
    for drawing in drawings(page, shown):
        drawn[drawing.part].append(drawing)
    tables = (page.runs, page.judged, matched, counts, clean, unread, further)
    return _template("page.html.j2").render(
        page=page,
        answers=answers,
        bars={a.task: draw.gap_bar(a.cell) for a in answers if a.cell},
        summary=wording.summary(answers, page.confirms),
        basis=basis(page.study),
        confirmed=plots.said_of_claims(page.claims),
        chance=plots.chance(page),
        ties=plots.near_ties(page),
        posterior=plots.posterior_gains(page),
        effects=plots.effects(page),
        clean=clean,
        judged=plots.judged(page.judged[:MAX_ROWS]),
        matched=matched,
        floors=figures.floors(page),
        pooled_f1=any(METRICS[row.metric].counts == "labels" for row in page.results),
        listed_f1=any(METRICS[row.metric].counts == "items" for row in page.results),
        matrices=plots.heats(page, shown),
        further=further,
        unread=unread,
        lenient=any(row.form == LENIENT for row in page.results),
        figures=drawn,
        max_rows=MAX_ROWS,
        max_cocktails=MAX_COCKTAILS,
        truncated=len(shown) < len(cells) or any(len(rows) > MAX_ROWS for rows in tables),
        brought=figures.brought(page),
        seeds=list(dict.fromkeys(point.seed for point in figures.curves(page))),
        counts=counts,
        shared=any(row.mix.share_asked is not None for row in counts),
        failures=failures,
        methods=sorted({m for c in shown for m in (c.value_method, c.method) if m}),
        training=training_note(page.study.train, page.study.flaws),
        clustered=sorted({r.task for r in page.results if r.clusters < r.n}),
    )


def _unread(page: ReportInput) -> list[tuple[str, str, dict[str, tuple[float, float]]]]:
    """(form, cocktail, task → mean share of unread answers and mean value), where any is unread.

    The lenient reading is there wherever a strict one failed.
    """
    runs: dict[tuple[str, str], dict[str, list[Result]]] = {}
    for row in page.main_results:
        runs.setdefault((row.form, row.cocktail), {}).setdefault(row.task, []).append(row)
    failed = {(row.form, row.cocktail) for row in page.main_results if row.unparsed}
    failed |= {(LENIENT, cocktail) for _, cocktail in failed}
    return [
        (
            *key,
            {t: (fmean(r.unparsed for r in o), fmean(r.value for r in o)) for t, o in own.items()},
        )
        for key, own in runs.items()
        if key in failed
    ]


# ---- Markdown, JSON, CSV ------------------------------------------------------------------------


def as_markdown(page: ReportInput) -> str:
    """Headings, sentences and tables: answers, claims, differences, floors, runs that failed."""
    main = [c for c in figures.cells(page) if page.is_main(c.task, c.form, c.metric)]
    ranked = sorted(main, key=lambda cell: -cell.value)
    p_values = {
        (task, cocktail): row.p
        for (form, task, metric, cocktail), row in figures.against(page, TO_SINGLE).items()
        if page.is_main(task, form, metric)
    }
    judged = {
        description: [plots.verdicts(row, wording.ends(row.low, row.high)) for row in rows]
        for description, rows in plots.judged(page.judged).items()
    }
    text = _template("page.md.j2").render(
        page=page,
        summary=wording.summary(figures.answers(page), page.confirms),
        cells={task: [cell for cell in ranked if cell.task == task] for task in page.tasks},
        p_values=p_values,
        chance=plots.chance(page),
        judged=judged,
        judged_columns=plots.JUDGED,
        floors=figures.floors(page),
    )
    return text.rstrip()


def as_json(page: ReportInput) -> str:
    """Every part of the page by its name, rows as objects, as JSON text."""
    parts = {f.name: getattr(page, f.name) for f in fields(page)}
    return json.dumps(parts, indent=1, default=_as_object)


def _as_object(row: Any) -> dict[str, Any]:  # noqa: ANN401 - any row type
    return row.model_dump(mode="json") if isinstance(row, BaseModel) else asdict(row)


def csv_files(page: ReportInput) -> dict[str, str]:
    """Each figure's numbers as CSV text by file name: matrix, floors, curves and others."""
    value = attrgetter(*_names(MixRow))
    mixes = [(c.run, c.cocktail, c.seed, *value(c.mix)) for c in figures.counts(page)]
    tables = {
        "matrix": _csv_of(Cell, figures.cells(page)),
        "floors": _csv_of(Floor, figures.floors(page)),
        "curves": _csv_of(CurvePoint, figures.curves(page)),
        "counts": _csv(["run", "cocktail", "seed", *_names(MixRow)], mixes),
        "shares": _csv_of(Portion, plots.portions(page)),
        "lengths": _csv_of(LengthRow, page.lengths),
        "runs": _csv_of(RunRow, page.runs),
        "claims": _csv_of(Claim, page.claims),
        "estimates": _csv_of(Estimate, page.estimates),
        "clean": _csv_of(Clean, plots.clean(page)),
        "judged": _csv_of(Judged, page.judged),
        "results": _csv_of(Result, page.split_results),
    }
    return {f"{name}.csv": text for name, text in tables.items()}


def _csv_of(row_type: type, rows: Iterable[object]) -> str:
    """Rows of one type, a column per field."""
    names = _names(row_type)
    return _csv(names, map(attrgetter(*names), rows))


def _names(row_type: type) -> list[str]:
    return [field.name for field in fields(row_type)]


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Floats in their shortest exact form, None as an empty field."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([header, *(map(plain_cell, row) for row in rows)])
    return text.getvalue()


# ---- templates ----------------------------------------------------------------------------------


@lru_cache
def _template(name: str) -> Template:
    environment = Environment(
        loader=PackageLoader("mixtune.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_in_html if name == "page.html.j2" else _in_markdown,
    )
    words = ("number", "signed", "p_value", "percent", "seconds", "headline", "some")
    environment.filters |= {word: getattr(wording, word) for word in words}
    environment.filters |= {
        "lines": lines,
        "named": named,
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
    return environment.get_template(name)


def _in_html(value: object) -> object:
    """A value as the page writes it: text without control characters, of bounded length."""
    return value if isinstance(value, Markup) or type(value) is not str else wording.plain(value)


def _in_markdown(value: object) -> Markup:
    """Text that stays inside its cell and is no markup: one line, bars, tags and links escaped."""
    if isinstance(value, Markup):
        return value
    text = wording.plain(str(value))
    for sign in ("\\", "|", "<", "`", "*"):
        text = text.replace(sign, f"\\{sign}")
    return Markup(" ".join(text.replace("](", "]\\(").split()))


def lines(text: str) -> Markup:
    """An error or a file, its line breaks kept."""
    return escape(wording.lines(text))


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
