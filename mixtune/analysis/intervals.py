"""Confidence intervals and p-values: one resample of clusters per task, and run-to-run variance.

Which interval, by the number of seeds behind a value (methods and simulated coverage:
arXiv 2411.00640, 2103.03098; tests/test_analysis.py):

    one seed, or a fixed system   items only, "given this run": Wilson for a share of independent
                                  items, Newcombe for a paired difference of two such shares, else
                                  expanded percentiles of a cluster bootstrap
    2 seeds and more              t: item variance (cluster bootstrap of the mean over seeds) plus
                                  the variance between runs, degrees of freedom by Satterthwaite;
                                  up to four seeds that variance is pooled over the study's cells,
                                  from five on it is the arm's own

The variance between runs is their scatter less the part that items account for: two runs that are
equally good still differ on single items, which the bootstrap over items includes already. Counted
twice, as crossed resampling of items and seeds does, intervals of a difference cover .98 to .998
at a nominal .95 (docs/decisions/029-run-variance.md).

p-values are two-sided, under H0: no difference. With repeated runs they come from the t: a
permutation of three against three cannot fall below .1. One run against another on independent
items has McNemar's exact p (McNemar 1947), one run on clusters the t of their bootstrap variance;
both are given the run.

Under `MIN_CLUSTERS` clusters, and for macro F1 under `MIN_RARE` items of a label, there is no
interval: resampling so few cannot show the spread of those that were not drawn. Where no draw
differs from the value (all right, or two systems with the same answers) the bootstrap would claim
no uncertainty; there the bound is Wilson's for an event not seen in that many clusters. Where fewer
than `FEW_VARY` clusters vary, the bootstrap is still too narrow: no end is nearer to the value than
that bound, so that one varying cluster never gives a narrower interval than none. No interval is
Wald's.

Knows: arrays of counts and of values, p-values. Does not know: tasks, systems' names, files.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from types import ModuleType
from typing import NamedTuple

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
"""Seeds from which an arm's own runs estimate their variance: cells need not scatter alike, and the
degrees of freedom of five are enough (docs/decisions/029-run-variance.md)."""
FEW_VARY = 10
"""With fewer varying clusters, an interval is never narrower than if none varied."""
TOO_FEW = "too few"


@dataclass(frozen=True, slots=True)
class Interval:
    """Two ends (None, None: too few) and the method; `p` of a difference."""

    low: float | None
    high: float | None
    method: str
    p: float | None = None


@dataclass(frozen=True, slots=True)
class Items:
    """The items behind a value: number of clusters, and in how many of them it varies.

    `independent`: the value is a share of right items, each a cluster of its own. `varying`: of a
    difference, the clusters on which the two sides differ; of a mean, the clusters with a wrong or
    with a right answer, whichever are fewer. `lowest`: smallest possible value of a mean; the
    largest is 1. `rarest`: items of the rarest label, where each label weighs the same.
    """

    clusters: int
    independent: bool
    varying: int
    lowest: float = 0.0
    rarest: int | None = None


@dataclass(frozen=True, slots=True)
class Spread:
    """Variance of one run's value between seeds, and its degrees of freedom."""

    variance: float
    df: int


@dataclass(frozen=True, slots=True)
class Arm:
    """One side of a comparison: `values` [seeds], `draws` [seeds, draws].

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


class Part(NamedTuple):
    """One term of a weighted sum of arms."""

    weight: float
    arm: Arm


# ---- resampling ----------------------------------------------------------------------------------


def cluster_weights(clusters: int, draws: int, rng: np.random.Generator) -> FloatArray:
    """Multiplicity of each cluster in each draw, [draws, clusters]; rows add up to `clusters`."""
    drawn = rng.integers(0, clusters, size=(draws, clusters))
    # One bincount over all draws: each draw's clusters are shifted to a range of their own.
    flat = (drawn + np.arange(draws)[:, None] * clusters).ravel()
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
    repeated = [values for values in values_by_cell if len(values) > 1]
    df = sum(len(values) - 1 for values in repeated)
    if df == 0:
        return None
    squares = sum(float(((values - values.mean()) ** 2).sum()) for values in repeated)
    return Spread(squares / df, df)


# ---- intervals of an arm, of a difference, of a weighted sum -------------------------------------


def interval(arm: Arm, against: Arm | None, items: Items, level: float = LEVEL) -> Interval:
    """Interval of an arm's mean, or of its difference to another on the same clusters.

    Args:
        arm: the arm.
        against: what is subtracted from it; None for nothing.
        items: what both were measured on.
        level: coverage; 0.9 is that of an equivalence test at 5 %.
    """
    arms = [arm] if against is None else [arm, against]
    seeds = max(len(a.values) for a in arms)
    if items.clusters < MIN_CLUSTERS:
        return _too_few_clusters(items.clusters)
    if items.rarest is not None and items.rarest < MIN_RARE:
        reason = f"{TOO_FEW}: {items.rarest} items of the rarest label, {MIN_RARE} needed"
        return Interval(None, None, reason)
    if seeds == 1 and against is None and items.independent:
        ends = wilson(round(arm.value * items.clusters), items.clusters, level)
        return Interval(*ends, "Wilson over independent items, given this run")
    value = arm.value - (against.value if against else 0.0)
    ci = (_of_items if seeds == 1 else _of_runs)(arms, value, items, level)
    ci = _not_too_narrow(ci, value, items, seeds == 1, level)
    largest = 1.0 - items.lowest
    return _clipped(ci, -largest if against else items.lowest, largest if against else 1.0)


def contrast(parts: Sequence[Part], clusters: int) -> tuple[float, Interval]:
    """Σ weight · mean of an arm, with its 95 % interval and p under H0: the sum is zero.

    Arms are of one panel, or of two panels of the same items. Where no arm has repeated runs the
    interval is given the runs.
    """
    value = sum(weight * arm.value for weight, arm in parts)
    if clusters < MIN_CLUSTERS:
        return value, _too_few_clusters(clusters)
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


def _too_few_clusters(clusters: int) -> Interval:
    return Interval(None, None, f"{TOO_FEW}: {clusters} clusters, {MIN_CLUSTERS} needed")


def _of_runs(arms: list[Arm], value: float, items: Items, level: float) -> Interval:
    """Interval of an arm of several runs, or of a difference to another, which also has a p."""
    variance, df = variance_of(_signed(arms), items.clusters)
    ci = t_interval(value, variance, df, level) if variance else Interval(value, value, "")
    return ci if len(arms) == 1 else replace(ci, p=_p(value, variance, df, items))


def _of_items(arms: list[Arm], value: float, items: Items, level: float) -> Interval:
    """Interval of one run, or of one run against another or the base, which also has a p."""
    arm, method = arms[0], f"bootstrap of {items.clusters} clusters, given this run"
    if len(arms) == 1:
        return percentiles(arm.draws[0], items.clusters, method, level)
    against = arms[1]
    if items.independent:
        table = _paired_table(arm, against, items)
        p = mcnemar(table.first, table.second)
        if items.varying:
            method = "Newcombe's paired score interval over independent items, given this run"
            return Interval(*newcombe(*table, level), method, p)
    else:
        p = _p(value, *variance_of(_signed(arms), items.clusters), items)
    draws = arm.draws[0] - against.draws[0]
    return replace(percentiles(draws, items.clusters, method, level), p=p)


class PairedTable(NamedTuple):
    """Independent items that both sides got right, only the first, only the second, neither."""

    both: int
    first: int
    second: int
    neither: int


def _paired_table(arm: Arm, against: Arm, items: Items) -> PairedTable:
    """Derived from the two shares and the number of items on which the sides differ."""
    right, reference = (round(side.value * items.clusters) for side in (arm, against))
    first = (items.varying + right - reference) // 2
    second = items.varying - first
    both = right - first
    return PairedTable(both, first, second, items.clusters - both - items.varying)


def _not_too_narrow(
    ci: Interval, value: float, items: Items, one_run: bool, level: float
) -> Interval:
    """With few varying clusters, each end at least as far from the value as if none varied."""
    assert ci.low is not None and ci.high is not None
    bound = wilson(0, items.clusters, level)[1]
    if ci.low == ci.high:
        method = f"no item varies: Wilson's bound for an event unseen in {items.clusters} clusters"
        method += ", given this run" if one_run else ""
        return Interval(value - bound, value + bound, method, ci.p)
    low, high = min(ci.low, value - bound), max(ci.high, value + bound)
    if items.varying >= FEW_VARY or (low, high) == (ci.low, ci.high):
        return ci
    method = f"{ci.method}; widened: fewer than {FEW_VARY} clusters vary"
    return Interval(low, high, method, ci.p)


def _clipped(ci: Interval, lowest: float, largest: float) -> Interval:
    """Ends beyond what the value can be are cut."""
    if ci.low is None or ci.high is None:
        return ci
    return replace(ci, low=max(ci.low, lowest), high=min(ci.high, largest))


# ---- variance ------------------------------------------------------------------------------------


def _signed(arms: Sequence[Arm]) -> list[Part]:
    """An arm, or an arm less another, as a weighted sum."""
    return [Part(weight, arm) for weight, arm in zip((1.0, -1.0), arms, strict=False)]


def variance_of(parts: Sequence[Part], clusters: int) -> tuple[float, float]:
    """Variance of Σ weight · mean of an arm, and its degrees of freedom.

    Arms share clusters, so the item variance is that of the sum on shared resamples. To it is added
    the variance between runs: for each arm weight² / seeds of it, less the part that items account
    for. Arms with the same pooled variance share one estimate of it: one part with its own degrees
    of freedom, not two (Satterthwaite 1946 takes its parts to be independent). Where no arm has
    several runs, the variance is given the runs.
    """
    draws = sum(weight * arm.draws.mean(0) for weight, arm in parts)
    # A bootstrap variance of n clusters is too small by (n - 1) / n.
    inflation = clusters / (clusters - 1)
    variance = float(np.var(draws, ddof=1)) * inflation
    # Satterthwaite: df = variance² / Σ part² / df of the part.
    denominator = variance**2 / (clusters - 1)
    for run in _run_variances(parts):
        variance += run.share * max(0.0, run.spread.variance - inflation * run.noise)
        denominator += (run.share * run.spread.variance) ** 2 / run.spread.df
    return variance, variance**2 / denominator if denominator else math.inf


class _RunVariance(NamedTuple):
    """An estimate of the variance between runs, its share in a sum, its part due to items."""

    spread: Spread
    share: float
    noise: float


def _run_variances(parts: Sequence[Part]) -> list[_RunVariance]:
    """Run variances of a sum; the noise is a mean over the arms that have several runs."""
    if all(len(arm.values) == 1 for _, arm in parts):
        return []
    pools: defaultdict[tuple[Spread, int | None], list[Part]] = defaultdict(list)
    for index, (weight, arm) in enumerate(parts):
        if arm.spread is None:
            continue
        own = pooled([arm.values]) if len(arm.values) >= OWN_RUNS_FROM else None
        # Arms with the same pooled spread go together; an arm's own estimate stays apart.
        key = (arm.spread, None) if own is None else (own, index)
        pools[key].append(Part(weight, arm))
    variances = []
    for (spread, _), members in pools.items():
        noises = [arm.noise for _, arm in members if arm.noise is not None]
        share = sum(weight**2 / len(arm.values) for weight, arm in members)
        variances.append(_RunVariance(spread, share, fmean(noises) if noises else 0.0))
    return variances


# ---- p-values ------------------------------------------------------------------------------------


def t_p(value: float, variance: float, df: float) -> float:
    """Two-sided p-value of a t test, under H0: no difference."""
    return 2.0 * float(special().stdtr(df, -abs(value) / variance**0.5))


def _p(value: float, variance: float, df: float, items: Items) -> float:
    """P of a difference by t; with few varying clusters at least that of `_not_too_narrow`."""
    p = t_p(value, variance, df) if variance else 0.0
    if items.varying >= FEW_VARY:
        return p
    # The level at which the bound of `_not_too_narrow` just reaches the difference.
    square = abs(value) * items.clusters / (1.0 - min(abs(value), 1.0 - 1e-12))
    return max(p, 2.0 * float(special().ndtr(-(square**0.5))))


def mcnemar(first: int, second: int) -> float:
    """Exact two-sided p of McNemar's test (1947): items that only the first or second got right."""
    n = first + second
    return min(1.0, 2.0 * float(special().bdtr(min(first, second), n, 0.5))) if n else 1.0


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for the family-wise error rate (Holm 1979).

    None stays None and still counts as a comparison.
    """
    order = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(order):
        # Adjusted values never fall below those of smaller p.
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        adjusted[index] = highest
    return adjusted


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for the false discovery rate (Benjamini and Hochberg 1995).

    None stays None and still counts as a comparison.
    """
    order = sorted(((p, i) for i, p in enumerate(p_values) if p is not None), reverse=True)
    adjusted: list[float | None] = [None] * len(p_values)
    lowest = 1.0
    for rank, (p, index) in zip(range(len(order), 0, -1), order, strict=True):
        lowest = min(lowest, p * len(p_values) / rank)
        adjusted[index] = lowest
    return adjusted


# ---- formulas ------------------------------------------------------------------------------------


def t_interval(value: float, variance: float, df: float, level: float = LEVEL) -> Interval:
    """Interval by Student's t, without p."""
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
    data", Statistics in Medicine 17, method 10. With one-sided disagreement it contains 0 up to 4
    items, as the mid-p McNemar test does.
    """
    n = both + first + second + neither
    rights = both + first, both + second
    share_1, share_2 = rights[0] / n, rights[1] / n
    (low_1, high_1), (low_2, high_2) = (wilson(right, n, level) for right in rights)
    phi = _phi(both, first, second, neither)

    def half(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    gap = share_1 - share_2
    below = half(share_1 - low_1, high_2 - share_2)
    above = half(high_1 - share_1, share_2 - low_2)
    return gap - below, gap + above


def _phi(both: int, first: int, second: int, neither: int) -> float:
    """Phi of a paired table; a positive one with Newcombe's correction, 0 for an empty margin."""
    n = both + first + second + neither
    margins = (both + first) * (second + neither) * (both + second) * (first + neither)
    cross = both * neither - first * second
    if margins == 0:
        return 0.0
    corrected = max(cross - n / 2, 0.0) if cross > 0 else float(cross)
    return corrected / math.sqrt(margins)


def special() -> ModuleType:
    """`scipy.special`, imported on first use: it would slow every command's start."""
    from scipy import special

    module: ModuleType = special
    return module
