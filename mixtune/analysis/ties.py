"""What can be told apart: equivalence with a margin, near-ties of the best, detectable differences.

Knows: cocktails, seeds, a margin. Does not know: how it was declared, how a row is shown.
"""

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np

from mixtune.analysis.resample import LEVEL, OWN_RUNS_FROM, Arm, special
from mixtune.analysis.results import Measured, estimate
from mixtune.metrics import Metric
from mixtune.records import Estimate

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
