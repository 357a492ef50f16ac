"""Intervals: one resample of clusters shared by all systems of a task, and the runs' own variance.

Knows: arrays of counts and of values. Does not know: tasks, systems' names, files.

Which interval, by the number of seeds behind a number (methods and simulated coverage:
arXiv 2411.00640, 2103.03098; tests/test_analysis.py):

    one seed, or a fixed system   items only, "given this run": Wilson for a share of independent
                                  items, Newcombe for a paired difference of two such shares, else
                                  expanded percentiles of a cluster bootstrap
    2 seeds and more              t: item variance (cluster bootstrap of the mean over seeds) plus
                                  the variance between runs, degrees of freedom by Satterthwaite;
                                  up to four seeds that variance is pooled over the study's cells,
                                  from five on it is the arm's own

The variance between runs is what is left of their scatter when the part that items account for is
taken off: two runs that are equally good still differ on single items, which the bootstrap over
items holds already. Counted twice, as crossed resampling of items and seeds does, intervals of a
difference cover .98 to .998 where .95 is meant (docs/decisions/029-run-variance.md).

p-values are two-sided, against a difference of nothing, and come from the t wherever there are
seeds: a permutation of three against three cannot fall below .1. One run against another on
independent items has McNemar's exact one (McNemar 1947), one run on clusters the t of their
bootstrap variance; both are given the run.

Under `MIN_CLUSTERS` clusters, and for macro F1 under `MIN_RARE` items of a label, there is no
interval: resampling so few cannot show the spread of
those that were not drawn. Where no draw differs from the value (all right, or two systems with the
same answers) the bootstrap would say that nothing is uncertain; there the bound is Wilson's for an
event not seen in so many clusters. Where fewer than `FEW_VARY` clusters vary, the bootstrap still
says too little: no end lies nearer to the value than that bound, so that one cluster that varies
never gives a narrower interval than none. No interval here is Wald's.

Weighted sums of arms with intervals: what one cell does beyond what others lead one to expect.

Knows: arms of one panel, or of two panels of the same items. Does not know: which sums are asked.

p-values of several comparisons, adjusted for their number.

Knows: p-values. Does not know: what was compared.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from types import ModuleType

import numpy as np
from numpy.typing import NDArray

from mixtune.tasks.metrics import FloatArray

DRAWS = 2000
LEVEL = 0.95
MIN_CLUSTERS = 15
"""Simulated coverage of the cluster bootstrap of a paired difference, accuracy and macro F1
(nominal .95): .88 and .90 with 10 clusters, .93 and .92 with 15, .94 with 30 and more."""
MIN_RARE = 10
"""Simulated coverage of macro F1 with three labels at 85, 10 and 5 % (nominal .95): .90 to .91 with
50 items, so with two or three of the rarest; .93 and more from 200 (docs/statistics.md)."""
OWN_RUNS_FROM = 5
"""Seeds from which an arm's runs say their own variance: cells need not scatter alike, and the
degrees of freedom of five are enough (docs/decisions/029-run-variance.md)."""
FEW_VARY = 10
"""Under so many clusters that vary, an interval is never narrower than if none did."""
TOO_FEW = "too few"


@dataclass(frozen=True, slots=True)
class Interval:
    """Two ends (None, None: too few to say) and how they were found; `p` of a difference."""

    low: float | None
    high: float | None
    method: str
    p: float | None = None


@dataclass(frozen=True, slots=True)
class Items:
    """The items behind a number: how many clusters, and in how many of them it varies.

    `independent`: the value is a share of items right, each a cluster of its own. `varying`: of a
    difference, the clusters on which the two sides differ; of a mean, the clusters with a wrong or
    with a right answer, whichever are fewer. `lowest`: the least that the number can be, if it is
    no difference; the most is 1. `rarest`: items of the rarest label, where each weighs the same.
    """

    clusters: int
    independent: bool
    varying: int
    lowest: float = 0.0
    rarest: int | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Variance of one run's value between seeds, and the degrees of freedom behind it."""

    variance: float
    df: int


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a number: `values` [seeds], `draws` [seeds, draws].

    `spread` is None for a system that was not trained here, which has no seeds to vary.
    """

    values: FloatArray
    draws: FloatArray
    spread: Spread | None

    @property
    def value(self) -> float:
        """Mean over seeds."""
        return float(self.values.mean())

    @property
    def noise(self) -> float | None:
        """The part of the variance between its runs that items account for; None of a single run.

        Where runs differ by nothing but chance on single items, it is all of it.
        """
        seeds = len(self.values)
        if seeds == 1:
            return None
        return float((self.draws - self.draws.mean(0)).var(1).sum()) / (seeds - 1)


Part = tuple[float, Arm]
"""A weight and an arm."""


def cluster_weights(clusters: int, draws: int, rng: np.random.Generator) -> FloatArray:
    """How often each draw takes each cluster, [draws, clusters]; rows add up to `clusters`."""
    taken = rng.integers(0, clusters, size=(draws, clusters))
    flat = (taken + np.arange(draws)[:, None] * clusters).ravel()
    return np.bincount(flat, minlength=draws * clusters).reshape(draws, clusters).astype(np.float64)


def resampled(counts: FloatArray, weights: FloatArray) -> FloatArray:
    """Counts of every draw, [draws, 3, labels], from counts per cluster [clusters, 3, labels].

    A metric of each draw is `metric.from_tallies` of them.
    """
    clusters, rows, labels = counts.shape
    summed: FloatArray = weights @ counts.reshape(clusters, rows * labels)
    return summed.reshape(len(weights), rows, labels)


def pooled(values_by_cell: list[FloatArray]) -> Spread | None:
    """Between-run variance over the cells that have several seeds; None when none has."""
    several = [values for values in values_by_cell if len(values) > 1]
    df = sum(len(values) - 1 for values in several)
    if df == 0:
        return None
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in several)
    return Spread(squares / df, df)


def interval(arm: Arm, against: Arm | None, items: Items, level: float = LEVEL) -> Interval:
    """Interval of an arm's mean, or of its difference to another on the same clusters.

    Args:
        arm: whose number it is.
        against: what is subtracted from it; None for nothing.
        items: what both were measured on.
        level: chance that it covers; 0.9 is that of an equivalence test at 5 %.
    """
    arms = [arm] if against is None else [arm, against]
    seeds = max(len(a.values) for a in arms)
    if items.clusters < MIN_CLUSTERS:
        why = f"{TOO_FEW}: {items.clusters} clusters, {MIN_CLUSTERS} needed"
        return Interval(None, None, why)
    if items.rarest is not None and items.rarest < MIN_RARE:
        why = f"{TOO_FEW}: {items.rarest} items of the rarest label, {MIN_RARE} needed"
        return Interval(None, None, why)
    if seeds == 1 and against is None and items.independent:
        ends = wilson(round(arm.value * items.clusters), items.clusters, level)
        return Interval(*ends, "Wilson over independent items, given this run")
    value = arm.value - (against.value if against else 0.0)
    found = (_of_items if seeds == 1 else _of_runs)(arms, value, items, level)
    found = _not_too_narrow(found, value, items, (seeds, level))
    widest = 1.0 - items.lowest
    return _within(found, -widest if against else items.lowest, widest if against else 1.0)


def _of_runs(arms: list[Arm], value: float, items: Items, level: float) -> Interval:
    """Interval of an arm of several runs, or of a difference to another; that has a p as well."""
    variance, df = variance_of(_signed(arms), items.clusters)
    found = t_interval(value, variance, df, level) if variance else Interval(value, value, "")
    return found if len(arms) == 1 else replace(found, p=_p(value, variance, df, items))


def _of_items(arms: list[Arm], value: float, items: Items, level: float) -> Interval:
    """Interval of one run, or of one run against another or the base; that has a p as well."""
    arm, method = arms[0], f"bootstrap of {items.clusters} clusters, given this run"
    if len(arms) == 1:
        return percentiles(arm.draws[0], items.clusters, method, level)
    against = arms[1]
    if items.independent:
        both, first, second, neither = _table(arm, against, items)
        p = mcnemar(first, second)
        if items.varying:
            method = "Newcombe's paired score interval over independent items, given this run"
            return Interval(*newcombe(both, first, second, neither, level), method, p)
    else:
        p = _p(value, *variance_of(_signed(arms), items.clusters), items)
    draws = arm.draws[0] - against.draws[0]
    return replace(percentiles(draws, items.clusters, method, level), p=p)


def _table(arm: Arm, against: Arm, items: Items) -> tuple[int, int, int, int]:
    """Independent items that both got right, the first only, the second only, and neither.

    The two shares and the number of items on which they differ determine it.
    """
    right, other = (round(side.value * items.clusters) for side in (arm, against))
    first = (items.varying + right - other) // 2
    second = items.varying - first
    both = right - first
    return both, first, second, items.clusters - both - items.varying


# ---- p-values ------------------------------------------------------------------------------------


def t_p(value: float, variance: float, df: float) -> float:
    """Two-sided p of the t: chance of a value at least as large where the truth is nothing."""
    return 2.0 * float(special().stdtr(df, -abs(value) / variance**0.5))


def _p(value: float, variance: float, df: float, items: Items) -> float:
    """The t's p of a difference; with few clusters that vary, as `_not_too_narrow` says."""
    found = t_p(value, variance, df) if variance else 0.0
    if items.varying >= FEW_VARY:
        return found
    # The level at which the bound of `_not_too_narrow` just reaches the difference.
    square = abs(value) * items.clusters / (1.0 - min(abs(value), 1.0 - 1e-12))
    return max(found, 2.0 * float(special().ndtr(-(square**0.5))))


def mcnemar(first: int, second: int) -> float:
    """Exact two-sided p of so many items that only one side got right (McNemar 1947)."""
    n = first + second
    return min(1.0, 2.0 * float(special().bdtr(min(first, second), n, 0.5))) if n else 1.0


# ---- parts ---------------------------------------------------------------------------------------


def _not_too_narrow(
    found: Interval, value: float, items: Items, how: tuple[int, float]
) -> Interval:
    """With few clusters that vary, each end at least as far off as if none did.

    `how`: seeds and level.
    """
    assert found.low is not None and found.high is not None
    seeds, level = how
    bound = wilson(0, items.clusters, level)[1]
    if found.low == found.high:
        method = f"no item varies: Wilson's bound for an event unseen in {items.clusters} clusters"
        method += ", given this run" if seeds == 1 else ""
        return Interval(value - bound, value + bound, method, found.p)
    low, high = min(found.low, value - bound), max(found.high, value + bound)
    if items.varying >= FEW_VARY or (low, high) == (found.low, found.high):
        return found
    method = f"{found.method}; widened: fewer than {FEW_VARY} clusters vary"
    return Interval(low, high, method, found.p)


def _signed(arms: Sequence[Arm]) -> list[Part]:
    """An arm, or an arm less another, as a weighted sum."""
    return list(zip((1.0, -1.0), arms, strict=False))


def variance_of(parts: Sequence[Part], clusters: int) -> tuple[float, float]:
    """Variance of Σ weight · mean of an arm, and its degrees of freedom.

    Arms share clusters, so the item variance is that of the sum on shared resamples. That between
    runs comes on top, for each arm weight² / seeds of it, less the part that items account for.
    Arms with the same pooled variance share one estimate of it: one part with its own degrees of
    freedom, not two (Satterthwaite 1946 takes its parts to be independent). Where no arm has
    several runs, it is given the runs.
    """
    draws = sum(weight * arm.draws.mean(0) for weight, arm in parts)
    more = clusters / (clusters - 1)
    variance = float(np.var(draws, ddof=1)) * more
    below = variance**2 / (clusters - 1)
    for spread, share, noise in _runs(parts):
        variance += share * max(0.0, spread.variance - more * noise)
        below += (share * spread.variance) ** 2 / spread.df
    return variance, variance**2 / below if below else math.inf


def _runs(parts: Sequence[Part]) -> list[tuple[Spread, float, float]]:
    """Estimates of the variance between runs: each with its share in the sum, and its items' part.

    That part is the mean over the arms that have several runs; with one run it is not known.
    """
    if all(len(arm.values) == 1 for _, arm in parts):
        return []
    pools: defaultdict[tuple[Spread, int | None], list[Part]] = defaultdict(list)
    for place, (weight, arm) in enumerate(parts):
        if arm.spread is None:
            continue
        own = pooled([arm.values]) if len(arm.values) >= OWN_RUNS_FROM else None
        key = (arm.spread, None) if own is None else (own, place)
        pools[key].append((weight, arm))
    found = []
    for (spread, _), members in pools.items():
        noises = [arm.noise for _, arm in members if arm.noise is not None]
        share = sum(weight**2 / len(arm.values) for weight, arm in members)
        found.append((spread, share, fmean(noises) if noises else 0.0))
    return found


def t_interval(value: float, variance: float, df: float, level: float = LEVEL) -> Interval:
    """The t's, whatever the variance is made of; no p."""
    half = float(special().stdtrit(df, 0.5 + level / 2)) * variance**0.5
    return Interval(value - half, value + half, f"t, {df:.0f} df: item and between-run variance")


def percentiles(
    draws: NDArray[np.float64], clusters: int, method: str, level: float = LEVEL
) -> Interval:
    """Expanded percentiles of draws: as much wider as t with few clusters is wider than the normal.

    Source: Hesterberg 2015, "What teachers should know about the bootstrap", section 5.
    """
    t = float(special().stdtrit(clusters - 1, 0.5 + level / 2))
    tail = float(special().ndtr(-t * (clusters / (clusters - 1)) ** 0.5))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Interval(float(low), float(high), method)


def _within(found: Interval, floor: float, ceiling: float) -> Interval:
    """An end beyond what the number can be says nothing."""
    if found.low is None or found.high is None:
        return found
    return replace(found, low=max(found.low, floor), high=min(found.high, ceiling))


def special() -> ModuleType:
    """SciPy's distributions, imported when first needed: every command would wait for them."""
    from scipy import special

    found: ModuleType = special
    return found


def wilson(right: int, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of a share; right ≤ n, n > 0 (Wilson 1927)."""
    z = float(special().ndtri(0.5 + level / 2))
    centre = (right + z**2 / 2) / (n + z**2)
    half = z * (right * (n - right) / n + z**2 / 4) ** 0.5 / (n + z**2)
    return max(0.0, centre - half), min(1.0, centre + half)


def newcombe(
    both: int, first: int, second: int, neither: int, level: float = LEVEL
) -> tuple[float, float]:
    """Interval of the difference of two shares of the same items, from their paired counts.

    `first` and `second`: items that only the first or only the second got right; a square-and-add
    of the two Wilson intervals with a correlation corrected for continuity. Source: Newcombe 1998,
    "Improved confidence intervals for the difference between binomial proportions based on paired
    data", Statistics in Medicine 17, method 10. With one-sided disagreement it holds 0 up to 4
    items, as the mid-p McNemar test does.
    """
    n = both + first + second + neither
    rights = both + first, both + second
    one, two = rights[0] / n, rights[1] / n
    (low_1, high_1), (low_2, high_2) = (wilson(right, n, level) for right in rights)
    phi = _correlation(both, first, second, neither)

    def half(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    gap = one - two
    return gap - half(one - low_1, high_2 - two), gap + half(high_1 - one, two - low_2)


def _correlation(both: int, first: int, second: int, neither: int) -> float:
    """Phi of a paired table; a positive one with Newcombe's correction, 0 for an empty margin."""
    n = both + first + second + neither
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = both * neither - first * second
    if margins == 0:
        return 0.0
    corrected = max(cross - n / 2, 0.0) if cross > 0 else float(cross)
    return corrected / math.sqrt(margins)


def contrast(parts: Sequence[Part], clusters: int) -> tuple[float, Interval]:
    """Σ weight · mean of an arm, with its 95 % interval and p against nothing.

    Its variance is that of resample.py. Where no arm has repeated runs it is given the runs.
    """
    value = sum(weight * arm.value for weight, arm in parts)
    if clusters < MIN_CLUSTERS:
        return value, Interval(None, None, f"{TOO_FEW}: {clusters} clusters, {MIN_CLUSTERS} needed")
    draws = sum(weight * arm.draws.mean(0) for weight, arm in parts)
    if draws.var() == 0.0:
        bound = wilson(0, clusters)[1]
        method = f"no item varies: Wilson's bound for an event unseen in {clusters} clusters"
        return value, Interval(value - bound, value + bound, method, 1.0 if value == 0 else None)
    variance, df = variance_of(parts, clusters)
    p = t_p(value, variance, df)
    if all(len(arm.values) == 1 for _, arm in parts):
        method = f"bootstrap of {clusters} clusters, given these runs"
        return value, replace(percentiles(draws, clusters, method), p=p)
    return value, replace(t_interval(value, variance, df), p=p)


def holm(found: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values: below x for any true null with a chance of at most x (Holm 1979).

    None stays None and still counts as a comparison that was made.
    """
    order = sorted((p, place) for place, p in enumerate(found) if p is not None)
    adjusted: list[float | None] = [None] * len(found)
    highest = 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(found) - rank)))
        adjusted[place] = highest
    return adjusted


def benjamini_hochberg(found: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values: of those below x at most a share x is expected to be wrong (1995).

    None stays None and still counts as a comparison that was made.
    """
    order = sorted(((p, place) for place, p in enumerate(found) if p is not None), reverse=True)
    adjusted: list[float | None] = [None] * len(found)
    lowest = 1.0
    for rank, (p, place) in zip(range(len(order), 0, -1), order, strict=True):
        lowest = min(lowest, p * len(found) / rank)
        adjusted[place] = lowest
    return adjusted
