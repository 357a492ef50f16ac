"""What a cocktail changes: paired differences to the step-matched single task and to the base.

Knows: cocktails, seeds, which cell was chosen. Does not know: prompts, tokens, how a difference is
shown.

What can be told apart: equivalence with a margin, near-ties of the best, detectable differences.

Knows: cocktails, seeds, a margin. Does not know: how it was declared, how a row is shown.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from mixtune.analysis.intervals import LEVEL, OWN_RUNS_FROM, Arm, benjamini_hochberg, special
from mixtune.analysis.measures import BASE, MAJORITY, Measured, SystemInfo, estimate
from mixtune.errors import DataError
from mixtune.records import Estimate, Result
from mixtune.tasks.metrics import METRICS, Metric

TO_SINGLE = "difference-to-single"
TO_EXPOSURE = "difference-to-exposure-matched"
TO_BASE = "difference-to-base"
TRANSFER = "transfer"
DIFFERENCE = "difference"


def differences(found: Sequence[Measured]) -> list[Estimate]:
    """Every cocktail minus the single tasks that belong beside it, and minus the untuned base.

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
    parts = (_to_single, _to_exposure, _to_base, _transfer)
    return adjusted([row for measured in found for part in parts for row in part(measured)])


def adjusted(rows: Sequence[Estimate]) -> list[Estimate]:
    """Rows in their order, p adjusted over those of one quantity, split, form and metric."""
    families: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        families[row.quantity, row.split, row.form, row.metric].append(place)
    made = list(rows)
    for places in families.values():
        found = benjamini_hochberg([rows[place].p for place in places])
        for place, value in zip(places, found, strict=True):
            made[place] = replace(rows[place], adjusted=value)
    return made


def compare(
    found: Sequence[Measured], subject: str, reference: str, margin: float | None = None
) -> list[Estimate]:
    """One cocktail or fixed system minus another, by name, on every panel that has both.

    Two trained cocktails are compared on the seeds that both have; a fixed system (base, majority,
    one that was brought in) is held against every seed of the other. With a `margin` each method
    begins with whether the two are a tie within it.
    """
    rows = []
    for measured in found:
        sides = [measured.named(name) for name in (subject, reference)]
        if all(None not in side for side in sides):
            shared = sides[0].keys() & sides[1].keys()
            sides = [{s: side[s] for s in shared} for side in sides]
        if all(sides):
            one, other = ([side[s] for s in sorted(side, key=str)] for side in sides)
            row = _difference(measured, (DIFFERENCE, subject, reference), one, other)
            tied = "" if margin is None else f"{tie(measured, one, other, margin)}; "
            rows.append(replace(row, method=f"{tied}{row.method}"))
    return rows


def _to_single(measured: Measured) -> list[Estimate]:
    """Cocktails, and single tasks trained for longer or shorter, minus the plain single task."""
    single = measured.panel.task
    if all(info.ingredients != (single,) for info in measured.infos.values()):
        return []
    others = [name for name in measured.cells() if name != single]
    return [row for name in others for row in minus(measured, TO_SINGLE, name, single)]


def _to_exposure(measured: Measured) -> list[Estimate]:
    """Cocktails minus the single task trained on as many of the target's rows."""
    target = measured.panel.task
    alone = {info.rows[target]: info.cocktail for info in _alone(measured)}
    rows = []
    for name, by_seed in measured.cells().items():
        info = measured.infos[next(iter(by_seed.values()))]
        seen = info.rows.get(target)
        if len(info.ingredients) > 1 and seen in alone:
            rows += minus(measured, TO_EXPOSURE, name, alone[seen])
    return rows


def _alone(measured: Measured) -> list[SystemInfo]:
    """Systems trained on the target alone whose rows are known, at the study's learning rate."""
    target = measured.panel.task
    infos = [measured.infos[system] for system in measured.values]
    own = [info for info in infos if not info.cocktail.startswith(f"{target} (lr ")]
    return [info for info in own if info.ingredients == (target,) and target in info.rows]


def minus(measured: Measured, quantity: str, subject: str, reference: str) -> list[Estimate]:
    """One cocktail minus another on the seeds that both have; nothing where they have none."""
    cells = measured.cells()
    one, other = (cells.get(name, {}) for name in (subject, reference))
    shared = sorted(one.keys() & other.keys())
    if not shared:
        return []
    sides = [[side[s] for s in shared] for side in (one, other)]
    return [_difference(measured, (quantity, subject, reference), *sides)]


def _to_base(measured: Measured) -> list[Estimate]:
    """Cocktails, and systems that were brought in, minus the base."""
    names = dict.fromkeys(measured.infos[system].cocktail for system in measured.values)
    sides = {name: list(measured.named(name).values()) for name in names}
    base = sides.pop(BASE, [])
    sides.pop(MAJORITY, None)
    if not base:
        return []
    return [_difference(measured, (TO_BASE, name, BASE), own, base) for name, own in sides.items()]


def _transfer(measured: Measured) -> list[Estimate]:
    """Cells that never saw the task, minus the base."""
    task, cells = measured.panel.task, measured.cells()
    without = {
        name
        for name, by_seed in cells.items()
        if task not in measured.infos[next(iter(by_seed.values()))].ingredients
    }
    return [replace(row, quantity=TRANSFER) for row in _to_base(measured) if row.subject in without]


def _difference(
    measured: Measured, what: tuple[str, str, str], systems: list[str], reference: list[str]
) -> Estimate:
    arm, against = measured.arm(systems), measured.arm(reference)
    found = measured.interval(systems, reference)
    return estimate(measured, what, arm, arm.value - against.value, found)


def select(
    results: Sequence[Result], task: str, metric: str, form: str, split: str = "validation"
) -> str:
    """The cocktail with the best mean on a split (validation), over the seeds that all have.

    A cocktail with a seed of its own is thereby not compared by what that seed happened to give.
    Ties by name; baselines, which have no seed, are not chosen from.

    Raises:
        DataError: no trained system has a result there, or the cocktails share no seed.
    """
    values: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for row in results:
        key = (row.task, row.metric, row.form, row.split)
        if row.seed is not None and key == (task, metric, form, split):
            values[row.cocktail][row.seed] = row.value
    where = f"{task}, {split}, {form}, {metric}"
    if not values:
        raise DataError("nothing to choose from", where=where)
    shared = sorted(set.intersection(*(set(by_seed) for by_seed in values.values())))
    if not shared:
        raise DataError(
            "the cocktails share no seed, so none can be chosen",
            where=where,
            found={cocktail: sorted(by_seed) for cocktail, by_seed in values.items()},
            wanted="a seed that every cocktail has finished",
            remedy="finish or retry the missing runs",
        )
    sign = -1.0 if METRICS[metric].higher_is_better else 1.0
    return min(values, key=lambda c: (sign * sum(values[c][s] for s in shared), c))


TIE = "tie"
DETECTABLE = "detectable"
POWER = 0.8
PLANNED = (3, 5)
"""Seeds of an arm for which the detectable difference is given beside those that a study has:
what a search winner and what a claim should have."""


def equivalent(
    measured: Measured, systems: Sequence[str], against: Sequence[str], margin: float
) -> bool | None:
    """Whether two arms differ by less than a margin (two one-sided tests, Schuirmann 1987, at 5 %).

    None where there are too few clusters to say.
    """
    found = measured.interval(systems, against, 2 * LEVEL - 1)
    if found.low is None or found.high is None:
        return None
    return -margin < found.low and found.high < margin


def ties(found: Sequence[Measured], margin: float) -> list[Estimate]:
    """Each cocktail minus the best one on the same data, and in words whether it is a tie.

    The best is that with the highest mean over its seeds, ties by name. It was picked on the data
    that it is read on: the differences are exploratory.
    """
    return [row for measured in found for row in _ties(measured, margin)]


def _ties(measured: Measured, margin: float) -> list[Estimate]:
    arms = {name: list(by_seed.values()) for name, by_seed in measured.cells().items()}
    if len(arms) < 2:
        return []
    means = {name: measured.arm(systems).value for name, systems in arms.items()}
    best = min(means, key=lambda name: (-_sign(measured.metric) * means[name], name))
    rows = []
    for name, systems in arms.items():
        if name == best:
            continue
        ends = measured.interval(systems, arms[best])
        row = estimate(
            measured, (TIE, name, best), measured.arm(systems), means[name] - means[best], ends
        )
        said = tie(measured, systems, arms[best], margin)
        rows.append(replace(row, method=f"{said}; {row.method}"))
    return rows


def tie(measured: Measured, systems: Sequence[str], against: Sequence[str], margin: float) -> str:
    """In words, whether two arms are a tie within a margin."""
    return _said(equivalent(measured, systems, against, margin), margin)


def _said(tied: bool | None, margin: float) -> str:
    if tied is None:
        return f"cannot be said to be within ±{margin:g}"
    return f"tie within ±{margin:g}" if tied else f"not shown to be within ±{margin:g}"


def detectable(found: Sequence[Measured]) -> list[Estimate]:
    """Smallest true difference between two cells that is found with 80 % power, by seeds an arm.

    Two-sided at 5 %, run variance included; subject "N seeds". The item variance is the median over
    pairs of the cells that train on the task. No row where runs were not
    repeated, nothing varies or there are too few clusters: how much seeds matter is then not known.
    """
    return [row for measured in found for row in _detectable(measured)]


def _detectable(measured: Measured) -> list[Estimate]:
    task = measured.panel.task
    arms = [
        list(by_seed.values())
        for by_seed in measured.cells().values()
        if task in measured.infos[next(iter(by_seed.values()))].ingredients
    ]
    spread = measured.spread(True)
    ends = measured.interval(arms[0], arms[1]) if len(arms) > 1 else None
    if spread is None or ends is None or ends.low is None:
        return []
    sides = [measured.arm(arm) for arm in arms]
    noise = min(spread.variance, fmean(side.noise for side in sides if side.noise is not None))
    items, clusters = _apart(sides, noise), measured.panel.clusters
    if items + spread.variance == 0:
        return []
    rows = []
    for seeds in sorted({*PLANNED, *map(len, arms)}):
        by_items = (items + 2.0 * noise / seeds) * clusters / (clusters - 1)
        variance = by_items + 2.0 * (spread.variance - noise) / seeds
        own = seeds >= OWN_RUNS_FROM
        below = by_items**2 / (clusters - 1)
        below += (2.0 * spread.variance / seeds) ** 2 / (2 * (seeds - 1) if own else spread.df)
        df = variance**2 / below
        t = special().stdtrit(df, 0.5 + LEVEL / 2) + special().stdtrit(df, POWER)
        least = float(t) * variance**0.5
        row = estimate(measured, (DETECTABLE, f"{seeds} seeds", ""), sides[0], least, ends)
        method = "two-sided 5 %, 80 % power; item variance plus between-run variance over cells"
        rows.append(replace(row, method=method, seeds=seeds, low=None, high=None, p=None))
    return rows


def _apart(sides: Sequence[Arm], noise: float) -> float:
    """Item variance of a difference of two cells, median over the pairs, without what runs add."""
    between = np.cov(np.stack([side.draws.mean(0) for side in sides]))
    own = np.diag(between) - noise / np.array([len(side.values) for side in sides])
    first, second = np.triu_indices(len(sides), 1)
    pairs = own[first] + own[second] - 2.0 * between[first, second]
    return max(0.0, float(np.median(pairs)))


def _sign(metric: Metric) -> float:
    return 1.0 if metric.higher_is_better else -1.0
