"""What the page says beside its values: claims, chance, near-ties, effects, curves, clean items.

Knows: which rows belong together. Does not know: HTML, SVG, how a number was computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from mixtune.records import Claim, Estimate, Judged, Result
from mixtune.report.figures import main_metrics
from mixtune.report.inputs import ReportInput
from mixtune.report.wording import number

CURVES = ("cocktails", "single task")


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


def main_rows(page: ReportInput, quantity: str) -> list[Estimate]:
    """Estimates of a quantity on the page's split, each task's in its main form and metric."""
    main = main_metrics(page)
    own = {task: (form, main.get(task)) for task, form in page.main_forms.items()}
    return [
        row
        for row in page.estimates
        if (row.quantity, row.split) == (quantity, page.split)
        and own.get(row.target) == (row.form, row.metric)
    ]


KINDS = (
    ("ingredient-effect", "Added to the target", "both together minus the target alone"),
    ("leave-one-out", "Kept in the mix of all", "all minus all without the ingredient"),
    ("synergy", "Pairs", "a pair minus the mean of its two singles, mostly dilution"),
    ("transfer", "Without the target", "cells that never saw the task, minus the untuned base"),
)
"""Quantity, title of its table, what it is."""


KEPT = (
    ("retention", "", "Kept of the base", "probes, minus the untuned base"),
    ("reading", "kl", "Moved from the base", "KL to the base on gold answers, nats per token"),
    (
        "reading",
        "logprob-per-token",
        "Read as likely",
        "log-likelihood of gold answers per token, minus the base",
    ),
)
"""Quantity, metric ("" for any), title of its table, what it is."""


def effects(page: ReportInput) -> list[Effects]:
    """The transfer matrix, what leaving out does, synergies, transfer; those that there are."""
    found = []
    for quantity, title, about in KINDS:
        rows = main_rows(page, quantity)
        if rows:
            at = {(row.subject, row.target): row for row in rows}
            subjects = list(dict.fromkeys(row.subject for row in rows))
            targets = [task for task in page.tasks if any(t == task for _, t in at)]
            found.append(Effects(title, about, subjects, targets, at))
    return [*found, *_kept(page)]


def _kept(page: ReportInput) -> list[Effects]:
    """What cells kept of the base, probe by probe; how far their answers moved from it."""
    found = []
    for quantity, metric, title, about in KEPT:
        rows = [
            row
            for row in page.retention
            if row.quantity == quantity and metric in ("", row.metric) and row.reference
        ]
        if rows:
            at = {(row.subject, row.target): row for row in rows}
            subjects = list(dict.fromkeys(subject for subject, _ in at))
            targets = list(dict.fromkeys(target for _, target in at))
            found.append(Effects(title, about, subjects, targets, at))
    return found


def curves(page: ReportInput) -> dict[str, dict[str, list[Estimate]]]:
    """Task → arm → expected best of 1, 2, … runs."""
    found: dict[str, dict[str, list[Estimate]]] = {}
    for row in main_rows(page, "tuning-curve"):
        found.setdefault(row.target, {}).setdefault(row.subject, []).append(row)
    return {
        task: {name: arms[name] for name in CURVES if name in arms} for task, arms in found.items()
    }


def chance(page: ReportInput) -> dict[str, Estimate]:
    """Task → the gain that chance alone gives the best of its cells."""
    return {row.target: row for row in main_rows(page, "best-of-n")}


def near_ties(page: ReportInput) -> dict[str, list[str]]:
    """Task → cells that are shown to be within the margin of the best one."""
    found: dict[str, list[str]] = {}
    for row in main_rows(page, "tie"):
        if row.method.startswith("tie within"):
            found.setdefault(row.target, []).append(row.subject)
    return found


def clean(page: ReportInput) -> list[Clean]:
    """Where some items share text with training rows: values with and without them."""
    main = main_metrics(page)

    def of(rows: Sequence[Result]) -> dict[tuple[str, str], Result]:
        return {
            (row.task, row.system): row
            for row in rows
            if row.split == page.split
            and (row.form, row.metric) == (page.main_forms[row.task], main.get(row.task))
        }

    whole, left = of(page.results), of(page.clean)
    return [
        Clean(row.task, row.cocktail, row.seed, row.value, row.n, left[key].value, left[key].n)
        for key, row in whole.items()
        if key in left and left[key].n < row.n
    ]


JUDGED = (
    *("task", "system", "seed", "mean", "95 %", "judged", "0 / 1 / 2"),
    *("inconsistent", "unparsable", "left out"),
)
"""Columns of what a judge said of a system."""


def verdicts(row: Judged, ends: str) -> tuple[object, ...]:
    """What a judge said of a system, column by column; `ends`: its interval in words."""
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
    found: dict[str, list[Judged]] = {}
    for row in rows:
        said = f"{row.judge}, rubric {row.rubric}: {row.validation}; {row.self_agreement}"
        found.setdefault(said, []).append(row)
    return found


def said_of_claims(claims: Sequence[Claim]) -> str:
    """Two sentences at most: what was confirmed, what was not."""
    made = [claim for claim in claims if claim.verdict != "exploratory"]
    if not made:
        return ""
    good = [c for c in made if c.verdict == "confirmed"]
    if good:
        first = "Confirmed on fresh seeds: " + "; ".join(map(_short, good)) + "."
    else:
        first = f"On none of {len(made)} targets is a gain confirmed on fresh seeds."
    ties = [c.target for c in made if c.verdict == "tie"]
    rest = [c.target for c in made if c.verdict == "not confirmed"]
    more = [f"a tie on {', '.join(ties)}"] * bool(ties)
    more += [f"not confirmed on {', '.join(rest)}"] * bool(rest and good)
    second = "; ".join(more)
    return first + (f" {second[0].upper()}{second[1:]}." if second else "")


def _short(claim: Claim) -> str:
    low, high = 100 * (claim.low or 0.0), 100 * (claim.high or 0.0)
    return (
        f"{claim.subject} on {claim.target}, {100 * claim.value:+.1f} points "
        f"(95 % CI {low:+.1f} to {high:+.1f})"
    )
