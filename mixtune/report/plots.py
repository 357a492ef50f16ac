"""Rows of each figure and table of the page: heat maps, forest plots, curves, effects, claims."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mixtune.analysis.primary import POSTERIOR
from mixtune.records import Claim, Estimate
from mixtune.report.figures import Cell, CurvePoint, best_first, brought, counts, floors
from mixtune.report.gather import ReportInput
from mixtune.report.wording import number
from mixtune.results.judgements import Judged

LEVELS = 4
"""Shades on each side of 0 in a heat map."""
SMALLEST_STEP = 0.005
"""Differences under two points are never stretched to full colour."""
ARMS = ("cocktails", "single task")
"""Arms of a tuning curve."""


@dataclass(frozen=True, slots=True)
class Heat:
    """Cocktails × tasks in one form of answers: `at` maps (cocktail, task) to its cell.

    A cell's shade changes with every `step` of its difference; the largest one has the last of
    `LEVELS`.
    """

    form: str
    cocktails: list[str]
    tasks: list[str]
    at: dict[tuple[str, str], Cell]
    step: float


@dataclass(frozen=True, slots=True)
class Forest:
    """All cocktails of one task and what was brought in, the best first, and what they are read by.

    `references`: name → value of a line behind them.
    """

    task: str
    title: str
    metric: str
    cells: list[Cell]
    references: dict[str, float]


@dataclass(frozen=True, slots=True)
class Chart:
    """One cocktail's loss: (seed, thinned points) per run; the axes end where those of all do."""

    cocktail: str
    runs: list[tuple[int | None, list[tuple[float, float]]]]
    steps: int
    top: float


@dataclass(frozen=True, slots=True)
class Portion:
    """An ingredient's shares of a cocktail's list: asked, got, and of the supervised tokens.

    Of the cocktail's first run that has counts; each between 0 and 1. Asked and got are measured
    in `unit`; of a run that was not planned by shares, in rows.
    """

    cocktail: str
    ingredient: str
    unit: str
    asked: float
    got: float
    supervised: float


@dataclass(frozen=True, slots=True)
class Effects:
    """A table of effects: ingredients × targets, rows by both names."""

    title: str
    about: str
    subjects: list[str]
    targets: list[str]
    at: dict[tuple[str, str], Estimate]


@dataclass(frozen=True, slots=True)
class Clean:
    """A system's value on all items, and on those whose text no training row has in part."""

    task: str
    cocktail: str
    seed: int | None
    whole: float
    items: int
    clean: float
    left: int


def heats(page: ReportInput, shown: Sequence[Cell]) -> list[Heat]:
    """One per form of answers, each task in its main metric; main forms first."""
    by_form: dict[str, list[Cell]] = {page.main_forms[task]: [] for task in page.tasks}
    for cell in shown:
        if cell.metric == page.main_metrics[cell.task]:
            by_form.setdefault(cell.form, []).append(cell)
    return [_heat(page, form, cells) for form, cells in by_form.items() if cells]


def _heat(page: ReportInput, form: str, own: Sequence[Cell]) -> Heat:
    widest = max((abs(c.difference) for c in own if c.difference is not None), default=0.0)
    present = {c.task for c in own}
    return Heat(
        form=form,
        cocktails=list(dict.fromkeys(c.cocktail for c in own)),
        tasks=[task for task in page.tasks if task in present],
        at={(c.cocktail, c.task): c for c in own},
        step=rounded_up(max(SMALLEST_STEP, widest / LEVELS), (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10)),
    )


def rounded_up(value: float, factors: Sequence[float] = (1, 2, 2.5, 5, 10)) -> float:
    """The next of some factors times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(round(f * power, 12) for f in factors if f * power >= value * (1 - 1e-9))


def forests(page: ReportInput, shown: Sequence[Cell]) -> list[Forest]:
    """One per task in its main form and metric; references: single, majority, chance, base."""
    floor_of = {(f.form, f.task): f for f in floors(page)}
    candidates = [c for c in [*shown, *brought(page)] if page.is_main(c.task, c.form, c.metric)]
    rows = []
    for task, title in page.tasks.items():
        own = best_first(c for c in candidates if c.task == task)
        if not own:
            continue
        floor = floor_of.get((own[0].form, task))
        values = {
            "single": next((c.value for c in own if c.is_single), None),
            "majority": floor.majority if floor else None,
            "chance": floor.chance if floor else None,
            "untuned base": floor.base if floor else None,
        }
        known = {name: value for name, value in values.items() if value is not None}
        rows.append(Forest(task, title, own[0].metric, own, known))
    return rows


def charts(points: Sequence[CurvePoint], at_most: int) -> list[Chart]:
    """A chart per cocktail with a line per run, on common axes."""
    by_run: defaultdict[tuple[str, str], list[CurvePoint]] = defaultdict(list)
    for point in points:
        by_run[point.cocktail, point.run].append(point)
    drawn: defaultdict[str, list[tuple[int | None, list[tuple[float, float]]]]] = defaultdict(list)
    for (cocktail, _), own in by_run.items():
        drawn[cocktail].append((own[0].seed, thinned(own, at_most)))
    losses = [loss for runs in drawn.values() for _, line in runs for _, loss in line]
    steps = max((point.step for point in points), default=0)
    top = max(losses, default=0.0) or 1.0
    return [Chart(cocktail, runs, steps, top) for cocktail, runs in drawn.items()]


def thinned(points: Sequence[CurvePoint], at_most: int) -> list[tuple[float, float]]:
    """(step, loss) averaged over consecutive stretches, so that at most so many are drawn."""
    stretch = -(-len(points) // at_most)
    parts = [points[i : i + stretch] for i in range(0, len(points), stretch)]
    return [
        (sum(p.step for p in part) / len(part), sum(p.loss for p in part) / len(part))
        for part in parts
    ]


def portions(page: ReportInput) -> list[Portion]:
    """Shares of every cocktail of several ingredients, from its first run with counts."""
    mixes = counts(page)
    first: dict[str, str] = {}
    for row in mixes:
        first.setdefault(row.cocktail, row.run)
    shares = []
    for cocktail, run in first.items():
        own = [row.mix for row in mixes if row.run == run]
        if len(own) < 2:
            continue
        requested, used = sum(m.rows_asked for m in own), sum(m.rows_got for m in own)
        supervised = sum(m.supervised_tokens for m in own)
        shares += [
            Portion(
                cocktail,
                m.ingredient,
                m.unit,
                m.rows_asked / max(1, requested) if m.share_asked is None else m.share_asked,
                m.rows_got / max(1, used) if m.share_got is None else m.share_got,
                m.supervised_tokens / max(1, supervised),
            )
            for m in own
        ]
    return shares


def main_rows(page: ReportInput) -> list[Estimate]:
    """Estimates on the page's split, each task's in its main form and metric."""
    return [
        row
        for row in page.estimates
        if row.split == page.split and page.is_main(row.target, row.form, row.metric)
    ]


KINDS = (
    ("ingredient-effect", "", "Added to the target", "both together minus the target alone"),
    ("leave-one-out", "", "Kept in the mix of all", "all minus all without the ingredient"),
    ("synergy", "", "Pairs", "a pair minus the mean of its two singles, mostly dilution"),
    ("transfer", "", "Without the target", "cells that never saw the task, minus the untuned base"),
    ("retention", "", "Kept of the base", "probes, minus the untuned base"),
    ("reading", "kl", "Moved from the base", "KL to the base on gold answers, nats per token"),
    (
        "reading",
        "logprob-per-token",
        "Read as likely",
        "log-likelihood of gold answers per token, minus the base",
    ),
)
"""Quantity and metric ("" for any) of the rows of a table of effects, its title, what it is."""


def effects(page: ReportInput) -> list[Effects]:
    """A table of each kind that there is: effects of ingredients; what systems kept of the base."""
    rows = [*main_rows(page), *(row for row in page.retention if row.reference)]
    tables = []
    for quantity, metric, title, about in KINDS:
        at = {
            (row.subject, row.target): row
            for row in rows
            if row.quantity == quantity and metric in ("", row.metric)
        }
        if at:
            subjects, targets = (dict.fromkeys(names) for names in zip(*at, strict=True))
            ordered = [*(task for task in page.tasks if task in targets), *targets]
            tables.append(Effects(title, about, list(subjects), list(dict.fromkeys(ordered)), at))
    return tables


def tuning_curves(page: ReportInput) -> dict[str, dict[str, list[Estimate]]]:
    """Task → arm → expected best of 1, 2, … runs."""
    by_task: defaultdict[str, dict[str, list[Estimate]]] = defaultdict(dict)
    for row in main_rows(page):
        if row.quantity == "tuning-curve" and row.subject in ARMS:
            by_task[row.target].setdefault(row.subject, []).append(row)
    return {task: dict(sorted(arms.items())) for task, arms in by_task.items()}


def chance(page: ReportInput) -> dict[str, Estimate]:
    """Task → the gain that chance alone gives the best of its cells."""
    return {row.target: row for row in main_rows(page) if row.quantity == "best-of-n"}


class TaskCell(NamedTuple):
    """A task and one of its cells."""

    task: str
    cocktail: str


def posterior_gains(page: ReportInput) -> dict[TaskCell, Estimate]:
    """Posterior gain of each cell on each task, on the page's split."""
    rows = [r for r in page.estimates if (r.quantity, r.split) == (POSTERIOR, page.split)]
    return {TaskCell(row.target, row.subject): row for row in rows}


def near_ties(page: ReportInput) -> dict[str, list[str]]:
    """Task → cells that are shown to be within the margin of the best one."""
    by_task: dict[str, list[str]] = {}
    for row in main_rows(page):
        if row.quantity == "tie" and row.tied:
            by_task.setdefault(row.target, []).append(row.subject)
    return by_task


def clean(page: ReportInput) -> list[Clean]:
    """Values with and without the items that share text with training rows, where there are any."""
    less = {(r.task, r.system, r.split, r.form, r.metric): r for r in page.clean}
    rows = []
    for whole in page.main_results:
        row = less.get((whole.task, whole.system, whole.split, whole.form, whole.metric))
        if row and row.n < whole.n and page.is_main(row.task, row.form, row.metric):
            system = (row.task, row.cocktail, row.seed)
            rows.append(Clean(*system, whole.value, whole.n, row.value, row.n))
    return rows


JUDGED = ("task", "system", "seed", "mean", "95 %", "judged", "0 / 1 / 2", "inconsistent",
          "unparsable", "left out")  # fmt: skip
"""Columns of what a judge said of a system."""


def verdicts(row: Judged, ends: str) -> tuple[object, ...]:
    """Judgements of a system, column by column; `ends`: its interval in words."""
    return (
        row.task,
        row.cocktail,
        "–" if row.seed is None else row.seed,
        number(row.value),
        ends,
        row.answers,
        f"{row.wrong} / {row.partly} / {row.right}",
        row.inconsistent,
        row.unparsable,
        row.left_out,
    )


def judged(rows: Sequence[Judged]) -> dict[str, list[Judged]]:
    """A judge, its rubric and how far it can be believed, in words → what it said of each system.

    Tasks that were judged at other times may have been judged beside other labels.
    """
    by_judge: dict[str, list[Judged]] = {}
    for row in rows:
        description = f"{row.judge}, rubric {row.rubric}: {row.validation}; {row.self_agreement}"
        by_judge.setdefault(description, []).append(row)
    return by_judge


def said_of_claims(claims: Sequence[Claim]) -> str:
    """Two sentences at most: what was confirmed, what was not."""
    tested = [claim for claim in claims if claim.verdict != "exploratory"]
    if not tested:
        return ""
    good = [c for c in tested if c.verdict == "confirmed"]
    if good:
        first = "Confirmed on fresh seeds: " + "; ".join(map(_short, good)) + "."
    else:
        first = f"On none of {len(tested)} targets is a gain confirmed on fresh seeds."
    ties, not_worse, rest = (
        [c.target for c in tested if c.verdict == verdict]
        for verdict in ("tie", "not worse", "not confirmed")
    )
    more = [f"a tie on {', '.join(ties)}"] * bool(ties)
    more += [f"not worse by the margin on {', '.join(not_worse)}"] * bool(not_worse)
    more += [f"not confirmed on {', '.join(rest)}"] * bool(rest and good)
    second = "; ".join(more)
    return first + (f" {second[0].upper()}{second[1:]}." if second else "")


def _short(claim: Claim) -> str:
    low, high = 100 * (claim.low or 0.0), 100 * (claim.high or 0.0)
    return (
        f"{claim.subject} on {claim.target}, {100 * claim.value:+.1f} points "
        f"(95 % CI {low:+.1f} to {high:+.1f})"
    )
