"""Whether two base models agree: do the same cocktails help them, and can one choose for the other?

Over the cells that hold a target, the target alone among them. Every row rests on cells that both
models have; ranks alone would say nothing, since two rankings differ by chance.

Knows: what is measured of two models on the same items, what each chose on validation. Does not
know: studies, files, how a row is shown.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean

from mixtune.analysis.effects import adjusted, minus
from mixtune.analysis.intervals import LEVEL, TOO_FEW, contrast, special
from mixtune.analysis.measures import Measured, estimate
from mixtune.records import Estimate
from mixtune.study.design import is_plain, members

RANKS = "rank-agreement"
ITSELF = "rank-agreement-with-itself"
APART = "gain-apart"
CARRIED = "choice-carried-over"
FEWEST = 10
"""Cells below which the interval of a rank correlation is not given: its source has none."""


@dataclass(frozen=True, slots=True)
class Side:
    """A base model: its study, what is measured of it, target → cell chosen on validation."""

    name: str
    found: Sequence[Measured]
    chosen: Mapping[str, str]


def agreement(one: Side, other: Side) -> list[Estimate]:
    """How far two models agree on every target that both have, on the same items.

    "rank-agreement": Kendall's tau-b of the cells' means in both; n counts cells, its interval
    takes them for a sample of cocktails (Fieller, Hartley and Pearson 1957: atanh tau has variance
    .437 / (n - 4)). "rank-agreement-with-itself": of one model, the mean tau-b between halves of
    its seeds: what noise alone leaves of agreement, so a description without an interval.
    "gain-apart": a cell's gain over the target alone in the one, minus that in the other; adjusted
    by Benjamini and Hochberg. "choice-carried-over", on test only: a model under the cell that the
    other chose on validation, minus under the cell that it chose itself.
    """
    rows: list[Estimate] = []
    for mine in one.found:
        theirs = next((found for found in other.found if _key(found) == _key(mine)), None)
        cells = [] if theirs is None else _shared(mine, theirs)
        if theirs is None or len(cells) < 2:
            continue
        rows += _ranks((one.name, mine), (other.name, theirs), cells)
        rows += _apart((one.name, mine), (other.name, theirs), cells)
        if mine.panel.split == "test":
            rows += [*_carried(one, other, mine), *_carried(other, one, theirs)]
    return adjusted(rows)


_Named = tuple[str, Measured]
"""A model's study and what is measured of it on a target."""


def _key(measured: Measured) -> tuple[str, str, str, str, int]:
    panel = measured.panel
    return panel.task, panel.split, panel.form, measured.metric.name, panel.clusters


def _shared(one: Measured, other: Measured) -> list[str]:
    """Plain cells that hold the target and are in both, in the order of the one."""
    theirs = other.cells()
    plain = [name for name in one.cells() if is_plain(name) and name in theirs]
    return [name for name in plain if one.panel.task in members(name)]


# ---- ranks ---------------------------------------------------------------------------------------


def _ranks(one: _Named, other: _Named, cells: Sequence[str]) -> Iterator[Estimate]:
    n = len(cells)
    tau, p = _tau(*(_means(m, cells, _seeds(m, cells)) for _, m in (one, other)))
    if tau is None:
        return
    low = high = None
    method = f"Kendall's tau-b of {n} cells on these items"
    if n < FEWEST or abs(tau) == 1.0:
        method += (
            f"; {TOO_FEW}: {FEWEST} needed" if n < FEWEST else "; all pairs alike: no interval"
        )
    else:
        low, high = tau_interval(tau, n)
        method += ", interval by Fieller's z"
    yield _row(one[1], (RANKS, one[0], other[0]), (tau, low, high, p), (cells, method))
    for name, measured in (one, other):
        found = _with_itself(measured, cells)
        if found is not None:
            method = "mean tau-b between halves of the seeds"
            numbers = (found, None, None, None)
            yield _row(measured, (ITSELF, name, name), numbers, (cells, method))


def tau_interval(tau: float, n: int) -> tuple[float, float]:
    """95 % interval of Kendall's tau of n pairs, n > 4 and |tau| < 1.

    Source: Fieller, Hartley and Pearson 1957, "Tests for rank correlation coefficients", Biometrika
    44: atanh tau is about normal with variance .437 / (n - 4).
    """
    half = float(special().ndtri(0.5 + LEVEL / 2)) * (0.437 / (n - 4)) ** 0.5
    return math.tanh(math.atanh(tau) - half), math.tanh(math.atanh(tau) + half)


def _with_itself(measured: Measured, cells: Sequence[str]) -> float | None:
    """Mean tau-b between halves of the seeds that all cells have; None of one seed."""
    seeds = _seeds(measured, cells)
    taus = []
    for half in combinations(seeds, len(seeds) // 2) if len(seeds) > 1 else ():
        rest = [seed for seed in seeds if seed not in half]
        tau, _ = _tau(*(_means(measured, cells, part) for part in (half, rest)))
        taus += [] if tau is None else [tau]
    return fmean(taus) if taus else None


def _seeds(measured: Measured, cells: Sequence[str]) -> list[int]:
    """Those that all cells have."""
    held = measured.cells()
    return sorted(set.intersection(*(set(held[name]) for name in cells)))


def _means(measured: Measured, cells: Sequence[str], seeds: Sequence[int]) -> list[float]:
    """Each cell's mean over some seeds; nothing without a seed."""
    held = measured.cells()
    values = [[measured.values[held[name][seed]] for seed in seeds] for name in cells]
    return [fmean(each) for each in values if each]


def _tau(one: Sequence[float], other: Sequence[float]) -> tuple[float | None, float | None]:
    """Tau-b and its p; None where either side has all cells alike, or no seed that all have."""
    from scipy.stats import kendalltau  # half a second, which other commands would wait for

    if not (len(set(one)) > 1 and len(set(other)) > 1):
        return None, None
    found = kendalltau(one, other)
    return round(float(found.statistic), 9), float(found.pvalue)  # 1 to the last digit


def _row(
    measured: Measured,
    what: tuple[str, str, str],
    numbers: tuple[float, float | None, float | None, float | None],
    how: tuple[Sequence[str], str],
) -> Estimate:
    """A row whose n are cells."""
    cells, method = how
    value, low, high, p = numbers
    held = measured.cells()
    arm = measured.arm(list(held[cells[0]].values()))
    made = estimate(measured, what, arm, value, None)
    n = len(cells)
    return replace(made, low=low, high=high, p=p, n=n, clusters=n, method=method)


# ---- gains and choices ---------------------------------------------------------------------------


def _apart(one: _Named, other: _Named, cells: Sequence[str]) -> Iterator[Estimate]:
    target = one[1].panel.task
    for name in cells:
        # The gain of a cell over the target alone, each model on the seeds that both have.
        mine = one[1].weighted([(1.0, name), (-1.0, target)])
        theirs = other[1].weighted([(-1.0, name), (1.0, target)])
        if name == target or not mine or not theirs:
            continue
        value, ends = contrast([*mine, *theirs], one[1].panel.clusters)
        what = (APART, f"{one[0]}: {name}", f"{other[0]}: {name}")
        yield estimate(one[1], what, mine[0][1], value, ends)


def _carried(own: Side, other: Side, measured: Measured) -> list[Estimate]:
    """A model under the other's choice, minus under its own; nothing where they are the same.

    Its own was chosen by the very runs that are read, whose luck it keeps on test: the cost is more
    likely too large than too small, and the method says by which seeds was chosen.
    """
    target = measured.panel.task
    mine, theirs = own.chosen.get(target), other.chosen.get(target)
    if mine is None or theirs is None or mine == theirs:
        return []
    how = "chosen on validation by the same seeds"
    return [
        replace(row, subject=f"{own.name}: {theirs}", method=f"{row.method}; {how}")
        for row in minus(measured, CARRIED, theirs, mine)
    ]
