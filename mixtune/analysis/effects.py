"""Paired differences between cocktails: to the single task, to the base, to the best; ties.

Knows: cocktails, seeds, a margin. Does not know: prompts, tokens, how a difference is shown.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import NamedTuple

import numpy as np

from mixtune.analysis.intervals import LEVEL, OWN_RUNS_FROM, Arm, benjamini_hochberg, special
from mixtune.analysis.measures import (
    BASE,
    MAJORITY,
    Contrast,
    Measured,
    estimate,
    shared_seeds,
)
from mixtune.records import Estimate

TO_SINGLE = "difference-to-single"
TO_EXPOSURE = "difference-to-exposure-matched"
TO_BASE = "difference-to-base"
TRANSFER = "transfer"
DIFFERENCE = "difference"
TIE = "tie"
DETECTABLE = "detectable"
POWER = 0.8
PLANNED = (3, 5)
"""Seeds of an arm for which the detectable difference is given beside those that a study has:
what a search winner and what a claim should have."""


def differences(measured: Sequence[Measured]) -> list[Estimate]:
    """Every cocktail minus the matched single tasks, and minus the untuned base.

    Paired by item and by cluster, averaged over the seeds that both sides have.
    "difference-to-single": the task trained on alone under the study's budget, which is
    step-matched under equal steps; not for single tasks themselves.
    "difference-to-exposure-matched": the task trained on alone on as many of its rows as the
    cocktail had of them. "difference-to-base": where the systems include a base; "transfer": those
    of them that were trained here without the task. A pair without a shared seed gives no row.
    `adjusted`: over all differences of a kind in one form and metric, by Benjamini and Hochberg.

    Raises:
        DataError: two systems of one cocktail and seed.
    """
    kinds = (_to_single, _to_exposure, _to_base, _transfer)
    return adjusted([row for m in measured for kind in kinds for row in kind(m)])


def adjusted(rows: Sequence[Estimate]) -> list[Estimate]:
    """Rows in their order, p adjusted over those of one quantity, split, form and metric."""
    families: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        families[row.quantity, row.split, row.form, row.metric].append(index)
    with_p = list(rows)
    for indices in families.values():
        p_values = benjamini_hochberg([rows[index].p for index in indices])
        for index, p in zip(indices, p_values, strict=True):
            with_p[index] = replace(rows[index], adjusted=p)
    return with_p


def compare(
    measured: Sequence[Measured], subject: str, reference: str, margin: float | None = None
) -> list[Estimate]:
    """One cocktail or fixed system minus another, by name, on every panel that has both.

    Two trained cocktails are compared on the seeds that both have; a fixed system (base, majority,
    an external one) is paired with every seed of the other. With a `margin` each row says if the
    two are a tie within it.
    """
    rows = []
    for m in measured:
        sides = [m.named(name) for name in (subject, reference)]
        if all(None not in side for side in sides):
            shared = sides[0].keys() & sides[1].keys()
            sides = [{seed: side[seed] for seed in shared} for side in sides]
        if not all(sides):
            continue
        # Seeds as text, since a fixed system's is None; the order fixes the rounding of sums.
        systems, against = ([side[seed] for seed in sorted(side, key=str)] for side in sides)
        row = _difference(m, Contrast(DIFFERENCE, subject, reference), systems, against)
        rows.append(row if margin is None else _with_tie(row, m, systems, against, margin))
    return rows


def minus(measured: Measured, quantity: str, subject: str, reference: str) -> list[Estimate]:
    """One cocktail minus another on the seeds that both have; nothing where they have none."""
    cells = measured.cells()
    sides = [cells.get(name, {}) for name in (subject, reference)]
    shared = sorted(sides[0].keys() & sides[1].keys())
    if not shared:
        return []
    systems, against = ([side[seed] for seed in shared] for side in sides)
    return [_difference(measured, Contrast(quantity, subject, reference), systems, against)]


def _to_single(measured: Measured) -> list[Estimate]:
    """Cocktails, and single tasks trained for longer or shorter, minus the plain single task."""
    single = measured.panel.task
    if all(info.ingredients != (single,) for info in measured.infos.values()):
        return []
    names = [name for name in measured.cells() if name != single]
    return [row for name in names for row in minus(measured, TO_SINGLE, name, single)]


def _to_exposure(measured: Measured) -> list[Estimate]:
    """Cocktails minus the single task trained on as many of the target's rows."""
    target, cells = measured.panel.task, measured.cells()
    infos = {name: measured.info(name) for name in cells}
    # At the study's learning rate only: a tuned single task differs in more than its rows.
    single = {
        info.rows[target]: name
        for name, info in infos.items()
        if info.ingredients == (target,) and target in info.rows and info.lr is None
    }
    rows = []
    for name, info in infos.items():
        count = info.rows.get(target)
        if len(info.ingredients) > 1 and count in single:
            rows += minus(measured, TO_EXPOSURE, name, single[count])
    return rows


def _to_base(measured: Measured) -> list[Estimate]:
    """Cocktails, and external systems, minus the base."""
    names = dict.fromkeys(measured.infos[system].cocktail for system in measured.values)
    sides = {name: list(measured.named(name).values()) for name in names}
    base = sides.pop(BASE, [])
    sides.pop(MAJORITY, None)
    if not base:
        return []
    return [
        _difference(measured, Contrast(TO_BASE, name, BASE), own, base)
        for name, own in sides.items()
    ]


def _transfer(measured: Measured) -> list[Estimate]:
    """Cells that never saw the task, minus the base."""
    task, cells = measured.panel.task, measured.cells()
    unseen = {name for name in cells if task not in measured.info(name).ingredients}
    return [replace(row, quantity=TRANSFER) for row in _to_base(measured) if row.subject in unseen]


def _difference(
    measured: Measured, contrast: Contrast, systems: Sequence[str], against: Sequence[str]
) -> Estimate:
    arm, reference = measured.arm(systems), measured.arm(against)
    ci = measured.interval(systems, against)
    return estimate(measured, contrast, arm, arm.value - reference.value, ci)


# ---- ties ----------------------------------------------------------------------------------------


class Margins(NamedTuple):
    """Results of one-sided tests at 5 % against a margin; both None with too few clusters.

    `tied`: two arms differ by less than it, by two tests (Schuirmann 1987). `not_worse`: one is
    worse than the other by less than it.
    """

    tied: bool | None
    not_worse: bool | None


def within_margin(
    measured: Measured, systems: Sequence[str], against: Sequence[str], margin: float
) -> Margins:
    """Test the difference of two arms against a margin, on one 90 % interval."""
    ci = measured.interval(systems, against, 2 * LEVEL - 1)
    if ci.low is None or ci.high is None:
        return Margins(None, None)
    worst = ci.low if measured.sign > 0 else -ci.high
    return Margins(-margin < ci.low and ci.high < margin, worst > -margin)


def ties(measured: Sequence[Measured], margin: float) -> list[Estimate]:
    """Each cocktail minus the best one on the same data, with the result of a tie test.

    The best has the highest mean over the seeds that all cocktails have, ties by name; without such
    seeds each cocktail's mean is over its own. Differences are over the seeds that both sides have.
    The best was picked on the data that it is read on: the differences are exploratory.
    """
    return [row for m in measured for row in _ties(m, margin)]


def _ties(measured: Measured, margin: float) -> Iterator[Estimate]:
    cells = measured.cells()
    if len(cells) < 2:
        return
    shared = shared_seeds(cells.values())
    means = {
        name: fmean(measured.values[own[seed]] for seed in shared or own)
        for name, own in cells.items()
    }
    best = min(means, key=lambda name: (-measured.sign * means[name], name))
    for name, own in cells.items():
        # A failed run leaves a cell with fewer seeds; only runs of the same seed are paired.
        seeds = shared_seeds((own, cells[best]))
        if name != best and seeds:
            systems, against = ([side[seed] for seed in seeds] for side in (own, cells[best]))
            row = _difference(measured, Contrast(TIE, name, best), systems, against)
            yield _with_tie(row, measured, systems, against, margin)


def _with_tie(
    row: Estimate, measured: Measured, systems: Sequence[str], against: Sequence[str], margin: float
) -> Estimate:
    tied = within_margin(measured, systems, against, margin).tied
    text = {
        None: f"cannot be said to be within ±{margin:g}",
        True: f"tie within ±{margin:g}",
        False: f"not shown to be within ±{margin:g}",
    }[tied]
    return replace(row, method=f"{text}; {row.method}", tied=tied, margin=margin)


# ---- detectable differences ----------------------------------------------------------------------


def detectable(measured: Sequence[Measured]) -> list[Estimate]:
    """Smallest true difference between two cells that is detected with 80 % power, by seeds an arm.

    Two-sided at 5 %, run variance included; subject "N seeds". The item variance is the median over
    pairs of the cells that train on the task. No row where runs were not repeated, nothing varies
    or there are too few clusters: the effect of seeds is then not known.
    """
    return [row for m in measured for row in _detectable(m)]


def _detectable(measured: Measured) -> list[Estimate]:
    task = measured.panel.task
    arms = [
        list(by_seed.values())
        for name, by_seed in measured.cells().items()
        if task in measured.info(name).ingredients
    ]
    spread = measured.spread(True)
    if spread is None or len(arms) < 2 or measured.interval(arms[0], []).low is None:
        return []
    sides = [measured.arm(arm) for arm in arms]
    noise = min(spread.variance, fmean(side.noise for side in sides if side.noise is not None))
    items, clusters = _item_variance(sides, noise), measured.panel.clusters
    if items + spread.variance == 0:
        return []
    rows = []
    for seeds in sorted({*PLANNED, *map(len, arms)}):
        by_items = (items + 2.0 * noise / seeds) * clusters / (clusters - 1)
        variance = by_items + 2.0 * (spread.variance - noise) / seeds
        own = seeds >= OWN_RUNS_FROM
        # Satterthwaite, as in intervals.variance_of: df = variance² / Σ part² / df of the part.
        denominator = by_items**2 / (clusters - 1)
        denominator += (2.0 * spread.variance / seeds) ** 2 / (
            2 * (seeds - 1) if own else spread.df
        )
        df = variance**2 / denominator
        t = special().stdtrit(df, 0.5 + LEVEL / 2) + special().stdtrit(df, POWER)
        least = float(t) * variance**0.5
        row = estimate(measured, Contrast(DETECTABLE, f"{seeds} seeds"), sides[0], least)
        method = "two-sided 5 %, 80 % power; item variance plus between-run variance over cells"
        rows.append(replace(row, method=method, seeds=seeds))
    return rows


def _item_variance(sides: Sequence[Arm], noise: float) -> float:
    """Item variance of a difference of two cells, median over pairs, less the part due to runs."""
    between = np.cov(np.stack([side.draws.mean(0) for side in sides]))
    own = np.diag(between) - noise / np.array([len(side.values) for side in sides])
    first, second = np.triu_indices(len(sides), 1)
    pairs = own[first] + own[second] - 2.0 * between[first, second]
    return max(0.0, float(np.median(pairs)))
