"""Weighted sums of arms with intervals: what one cell does beyond what others lead one to expect.

Knows: arms of one panel, or of two panels of the same items. Does not know: which sums are asked.
"""

from collections.abc import Sequence
from dataclasses import replace

from mixtune.analysis.resample import (
    MIN_CLUSTERS,
    TOO_FEW,
    Interval,
    Part,
    percentiles,
    t_interval,
    t_p,
    variance_of,
    wilson,
)


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
