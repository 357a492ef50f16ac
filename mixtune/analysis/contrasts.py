"""Weighted sums of arms with intervals: what one cell does beyond what others lead one to expect.

Knows: arms of one panel, or of two panels of the same items. Does not know: which sums are asked.
"""

from collections import defaultdict
from collections.abc import Sequence
from types import ModuleType

from mixtune.analysis.resample import (
    LEVEL,
    MIN_CLUSTERS,
    TOO_FEW,
    Arm,
    Interval,
    Spread,
    percentiles,
    wilson,
)

Part = tuple[float, Arm]
"""A weight and an arm."""


def contrast(parts: Sequence[Part], clusters: int) -> tuple[float, Interval]:
    """Σ weight · mean of an arm, with its 95 % interval and p against nothing.

    Item variance is that of the sum over shared resamples; between-run variance comes on top, each
    arm's share weight² / seeds, with Satterthwaite's degrees of freedom as in resample.py. Where no
    arm has repeated runs it is given the runs.
    """
    value = sum(weight * arm.value for weight, arm in parts)
    if clusters < MIN_CLUSTERS:
        return value, Interval(None, None, f"{TOO_FEW}: {clusters} clusters, {MIN_CLUSTERS} needed")
    draws = sum(weight * arm.draws.mean(0) for weight, arm in parts)
    items = float(draws.var(ddof=1)) * clusters / (clusters - 1)
    bound = wilson(0, clusters)[1]
    if items == 0.0:
        method = f"no item varies: Wilson's bound for an event unseen in {clusters} clusters"
        return value, Interval(value - bound, value + bound, method, 1.0 if value == 0 else None)
    shares: defaultdict[Spread, float] = defaultdict(float)
    if any(len(arm.values) > 1 for _, arm in parts):
        for weight, arm in parts:
            if arm.spread is not None:
                shares[arm.spread] += weight**2 / len(arm.values)
    runs = [(spread.variance * share, spread.df) for spread, share in shares.items()]
    variance = items + sum(part for part, _ in runs)
    below = items**2 / (clusters - 1) + sum(part**2 / df for part, df in runs)
    df = variance**2 / below
    p = 2.0 * float(_special().stdtr(df, -abs(value) / variance**0.5))
    if not runs:
        method = f"bootstrap of {clusters} clusters, given these runs"
        found = percentiles(draws, clusters, method)
        return value, Interval(found.low, found.high, method, p)
    half = float(_special().stdtrit(df, 0.5 + LEVEL / 2)) * variance**0.5
    method = f"t, {df:.0f} df: item variance plus between-run variance pooled over cells"
    return value, Interval(value - half, value + half, method, p)


def _special() -> ModuleType:
    from scipy import special

    found: ModuleType = special
    return found
