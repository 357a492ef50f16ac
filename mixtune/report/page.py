"""One self-contained HTML page from a study's estimates: no network, complete without its script.

Knows: the template, which parts a page of at most a megabyte has. Does not know: how estimates were
made, stores, how a figure is drawn.

A figure and its numbers as files to keep: standalone SVG, links that hold a file's content.

Knows: data: links, the figures' stylesheet. Does not know: what a figure shows.
"""

import re
from base64 import b64encode
from bisect import bisect_left
from collections import ChainMap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from hashlib import sha256
from importlib import resources
from statistics import fmean
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup, escape

from mixtune.analysis.intervals import FEW_VARY, MIN_CLUSTERS
from mixtune.records import LENIENT, Result
from mixtune.report import draw, draw_claims, figures, plots, wording
from mixtune.report import plots as evidence
from mixtune.report.figures import Cell
from mixtune.report.inputs import ReportInput
from mixtune.report.text import csv_files, csv_of
from mixtune.results.questions import unanswered
from mixtune.study.spec import training_note
from mixtune.tasks.metrics import METRICS

LARGEST = 1_000_000
"""Bytes of a page."""


@dataclass(frozen=True, slots=True)
class Detail:
    """How much a page shows; None is all there is.

    `copies`: figures and numbers are in the page as files to keep, else links lead to the files
    beside it. `metrics`, `forms`: whether other than the main ones are shown. `points` per curve.
    """

    copies: bool = True
    metrics: bool = True
    forms: bool = True
    points: int = 50
    rows: int | None = None
    cocktails: int | None = None


FULL = Detail()
CUTS: tuple[tuple[dict[str, Any], str], ...] = (
    ({"copies": False}, "copies of figures and numbers inside the page (links lead to files)"),
    ({"metrics": False}, "heat maps and tables of other metrics"),
    ({"points": 16}, "points of training curves beyond 16"),
    ({"rows": 300}, "rows beyond 300 of the tables of data and runs"),
    ({"forms": False}, "numbers of forms in which nothing is compared"),
    ({"rows": 60}, "rows beyond 60 of the tables of data and runs"),
    ({"cocktails": 60}, "cocktails beyond the first 60"),
    ({"cocktails": 25, "rows": 25}, "cocktails and rows beyond the first 25"),
)
"""What is left out of a page that would be too large, in this order; all of it is in the CSVs."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure and its numbers. `table`: the CSV file beside the page that holds them."""

    name: str
    svg: Markup
    rows: Sequence[object]
    table: str
    title: str = ""


def render(page: ReportInput) -> str:
    """The page as text, at most a megabyte; every name, note and error on it is escaped."""
    cut = lru_cache(partial(_cut, page))

    def fits(count: int) -> bool:
        return len(cut(count).encode()) <= LARGEST

    # Each cut makes the page smaller.
    return cut(0) if fits(0) else cut(1 + bisect_left(range(1, len(CUTS)), True, key=fits))


def _cut(page: ReportInput, count: int) -> str:
    """The page with the first so many cuts made."""
    changes = ChainMap(*(change for change, _ in reversed(CUTS[:count])))
    return _rendered(page, replace(FULL, **changes), [words for _, words in CUTS[:count]])


def page_files(page: ReportInput) -> dict[str, str]:
    """What lies beside the page, by name: each table as CSV, each figure as SVG."""
    drawn = [d for group in drawings(page, FULL).values() for d in group]
    return csv_files(page) | {f"{d.name}.svg": standalone(d.svg) for d in drawn}


def drawings(page: ReportInput, detail: Detail) -> dict[str, list[Drawing]]:
    """Every figure, by the part of the page that it is in."""
    shown, runs = _shown(page, detail), page.runs
    timed = any(run.seconds for run in runs)
    return {
        "heat": _heat_maps(page, detail, shown),
        "forest": [
            Drawing(_name("task", i, forest.task), draw.forest_plot(forest), forest.cells, "matrix")
            for i, forest in enumerate(plots.forests(page, shown), 1)
        ],
        "curves": _curves(page, detail),
        "claims": _claims(page),
        "tuning": _tuning(page),
        "data": _data(page, detail),
        "runs": [Drawing("runs", draw.time_bars(runs[: detail.rows]), runs, "runs")] * timed,
    }


def _name(kind: str, number: int, text: str) -> str:
    return f"{kind}-{number}-{wording.slug(text)}"


def _shown(page: ReportInput, detail: Detail) -> list[Cell]:
    """The cells of the page; of a study that is too large, those of its first cocktails."""
    everything = figures.cells(page)
    kept = set(list(dict.fromkeys(c.cocktail for c in everything))[: detail.cocktails])
    kept |= {answer.cell.cocktail for answer in figures.answers(page) if answer.cell}
    return [c for c in everything if c.cocktail in kept]


def _heat_maps(page: ReportInput, detail: Detail, shown: Sequence[Cell]) -> list[Drawing]:
    found: list[Drawing] = []
    main = figures.main_metrics(page)
    forms = set(page.main_forms.values())
    for heat in plots.heats(page, shown):
        if (heat.metric and not detail.metrics) or (heat.form not in forms and not detail.forms):
            continue
        name = f"matrix-{wording.slug(heat.form)}-{wording.slug(heat.metric or 'main')}"
        svg = draw.heat_map(heat, page.tasks, main, f"h{len(found)}")
        title = f"{heat.form} answers{f', {heat.metric}' if heat.metric else ''}"
        found.append(Drawing(name, svg, list(heat.at.values()), "matrix", title))
    return found


def _curves(page: ReportInput, detail: Detail) -> list[Drawing]:
    points = figures.curves(page)
    return [
        Drawing(
            _name("curve", i, chart.cocktail),
            draw.curve_chart(chart),
            [point for point in points if point.cocktail == chart.cocktail],
            "curves",
        )
        for i, chart in enumerate(plots.charts(points, detail.points)[: detail.cocktails], 1)
    ]


def _claims(page: ReportInput) -> list[Drawing]:
    if not page.claims:
        return []
    svg = draw_claims.claims_plot(page.claims, page.tasks)
    return [Drawing("claims", svg, page.claims, "claims")]


def _tuning(page: ReportInput) -> list[Drawing]:
    return [
        Drawing(
            _name("tuning", i, task),
            draw_claims.tuning_chart(page.tasks[task], arms),
            [row for rows in arms.values() for row in rows],
            "estimates",
        )
        for i, (task, arms) in enumerate(evidence.curves(page).items(), 1)
    ]


def _data(page: ReportInput, detail: Detail) -> list[Drawing]:
    rows = plots.portions(page)
    names = list(dict.fromkeys(row.cocktail for row in rows))[: detail.cocktails]
    kept = [row for row in rows if row.cocktail in names]
    found = []
    if page.lengths:
        found.append(Drawing("lengths", draw.length_plot(page.lengths), page.lengths, "lengths"))
    if kept:
        found.append(Drawing("shares", draw.share_bars(kept), kept, "shares"))
    return found


def _links(figure: Drawing, page: ReportInput, detail: Detail) -> dict[str, str]:
    """Where a figure and its numbers can be had: copies inside the page, or files beside it."""
    if not detail.copies:
        folder = f"{page.split}/"
        return {"svg": f"{folder}{figure.name}.svg", "csv": f"{folder}{figure.table}.csv"}
    numbers = data_link(csv_of(type(figure.rows[0]), figure.rows), "text/csv")
    # Both are written so that they are safe in an attribute.
    return {"svg": Markup(svg_link(figure.svg)), "csv": Markup(numbers)}


def _rendered(page: ReportInput, detail: Detail, left_out: Sequence[str]) -> str:
    shown, main = _shown(page, detail), figures.main_metrics(page)
    heats = [h for h in plots.heats(page, shown) if not h.metric]
    forms = set(page.main_forms.values())
    answers, counts = figures.answers(page), figures.counts(page)
    failures = [run for run in page.runs if run.state == "failed" or run.error]
    return _template().render(
        page=page,
        answers=answers,
        bars={a.task: draw.gap_bar(a.cell) for a in answers if a.cell},
        summary=wording.summary(answers, page.confirms),
        exploratory=_exploratory(page),
        confirmed=evidence.said_of_claims(page.claims),
        chance=evidence.chance(page),
        ties=evidence.near_ties(page),
        effects=evidence.effects(page),
        clean=evidence.clean(page)[: detail.rows],
        judged=evidence.judged(page.judged[: detail.rows]),
        matched=[row for row in page.data if row.matched][: detail.rows],
        floors=figures.floors(page),
        pooled_f1=any(METRICS[row.metric].counts == "labels" for row in page.results),
        listed_f1=any(METRICS[row.metric].counts == "items" for row in page.results),
        matrices=[h for h in heats if detail.forms or h.form in forms],
        others=[c for c in shown if c.metric != main[c.task]] if detail.metrics else [],
        main=main,
        unread=_unread(page)[: detail.rows],
        lenient=any(row.form == LENIENT for row in page.results),
        figures=drawings(page, detail),
        links_of=lambda figure: _links(figure, page, detail),
        brought=figures.brought(page),
        seeds=list(dict.fromkeys(point.seed for point in figures.curves(page))),
        counts=counts[: detail.rows],
        shared=any(row.mix.share_asked is not None for row in counts),
        runs=page.runs[: detail.rows],
        failures=failures[: detail.rows],
        failed=len(failures),
        methods=sorted({m for c in shown for m in (c.value_method, c.method) if m}),
        training=training_note(page.study.train, page.study.flaws),
        budget=wording.budget(page.study.budget),
        done=sum(run.state == "done" for run in page.runs),
        clustered=sorted({r.task for r in page.results if r.clusters < r.n}),
        left_out=left_out,
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
    """What the template writes: text from outside without controls, of bounded length."""
    return value if isinstance(value, Markup) or type(value) is not str else wording.plain(value)


def named(name: str) -> Markup:
    """A cocktail's or run's name: may break behind `+`; a long one cut, its start as a tooltip."""
    shown = Markup("+<wbr>").join(wording.plain(name, wording.LONGEST_NAME).split("+"))
    if len(name) <= wording.LONGEST_NAME:
        return shown
    return Markup('<span title="{}">{}</span>').format(wording.plain(name, 300), shown)


NAMESPACE = "http://www.w3.org/2000/svg"
_SAFE = " !$()*+,-./:;=?@[]_{|}~'"


def standalone(svg: str) -> str:
    """An SVG of the page as a file of its own: in light colours, on white, its style inside.

    Colours are written out, because drawing programs do not know variables of stylesheets.
    """
    head, rest = svg.split(">", 1)
    head = re.sub(r' style="[^"]*"', "", head).replace("<svg", f'<svg xmlns="{NAMESPACE}"', 1)
    background = '<rect width="100%" height="100%" fill="#fff"/>'
    return f"{head}>\n<style>\n{_light()}</style>\n{background}{rest}\n"


def data_link(text: str, kind: str) -> str:
    """A data: link that holds a text; safe inside double quotes of an attribute."""
    return f"data:{kind};charset=utf-8,{quote(text, safe=_SAFE)}"


def svg_link(svg: str) -> str:
    """A data: link that holds a standalone SVG."""
    # Every quote inside a text is an entity already, so these are the attributes' own.
    return data_link(standalone(svg).replace('"', "'"), "image/svg+xml")


def file(name: str) -> str:
    """One of the page's own parts."""
    return resources.files("mixtune.report.templates").joinpath(name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def _light() -> str:
    """The figures' rules with every colour written out as in light mode."""
    css = re.sub(r"light-dark\((#\w+), #\w+\)", r"\1", file("figure.css"))
    colours = dict(re.findall(r"(--[\w-]+): (#\w+)", css))
    rules = css[css.index("}") + 1 :].strip() + "\n"
    return re.sub(r"var\((--[\w-]+)\)", lambda found: colours[found[1]], rules)
