"""Agreement of two base models: do the same cocktails help, can one choose for the other?

Over the cells that hold a target, the target alone among them. Every row rests on cells that both
models have; ranks alone would show nothing, since two rankings differ by chance.

Knows: panels of two models on the same items, what each chose on validation. Does not know:
studies, files, how a row is shown.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

from mixtune.analysis.effects import adjusted, minus
from mixtune.analysis.intervals import LEVEL, TOO_FEW, contrast, special
from mixtune.analysis.measures import Contrast, Measured, WeightedCell, estimate, shared_seeds
from mixtune.records import Estimate

RANKS = "rank-agreement"
ITSELF = "rank-agreement-with-itself"
APART = "gain-apart"
CARRIED = "choice-carried-over"
FEWEST = 10
"""Cells below which the interval of a rank correlation is not given: its source has none."""


@dataclass(frozen=True, slots=True)
class Side:
    """A base model: its study, its panels, target → cell chosen on validation."""

    name: str
    measured: Sequence[Measured]
    chosen: Mapping[str, str]


class _Model(NamedTuple):
    """A base model on one target: its study's name and its panel."""

    name: str
    measured: Measured


class _Tau(NamedTuple):
    value: float
    p: float


def agreement(first: Side, second: Side) -> list[Estimate]:
    """Agreement of two models on every target that both have, on the same items.

    "rank-agreement": Kendall's tau-b of the cells' means in both; n counts cells, its interval
    takes them for a sample of cocktails (Fieller, Hartley and Pearson 1957: atanh tau has variance
    .437 / (n - 4)). "rank-agreement-with-itself": of one model, the mean tau-b between halves of
    its seeds: what noise alone leaves of agreement, so a description without an interval.
    "gain-apart": a cell's gain over the target alone in the one, minus that in the other; adjusted
    by Benjamini and Hochberg. "choice-carried-over", on test only: a model under the cell that the
    other chose on validation, minus under the cell that it chose itself.
    """
    rows: list[Estimate] = []
    panels = {_key(measured): measured for measured in reversed(second.measured)}
    for measured in first.measured:
        if _key(measured) not in panels:
            continue
        models = _Model(first.name, measured), _Model(second.name, panels[_key(measured)])
        cells = _shared_cells(*(model.measured for model in models))
        if len(cells) < 2:
            continue
        rows += [*_ranks(*models, cells), *_gains_apart(*models, cells)]
        if measured.panel.split == "test":
            rows += _carried(first, second, models[0].measured)
            rows += _carried(second, first, models[1].measured)
    return adjusted(rows)


def _key(measured: Measured) -> tuple[str | int, ...]:
    return *measured.key, measured.panel.split, measured.panel.clusters


def _shared_cells(first: Measured, second: Measured) -> list[str]:
    """Plain cells that hold the target and are in both, in the order of the first."""
    target, cells = first.panel.task, second.cells()
    infos = [first.info(name) for name in first.cells() if name in cells]
    return [info.cocktail for info in infos if info.plain and target in info.ingredients]


# ---- ranks ---------------------------------------------------------------------------------------


def _ranks(first: _Model, second: _Model, cells: Sequence[str]) -> Iterator[Estimate]:
    n = len(cells)
    tau = _tau(*(_means(m, cells, _shared_seeds(m, cells)) for _, m in (first, second)))
    if tau is None:
        return
    low = high = None
    method = f"Kendall's tau-b of {n} cells on these items"
    if n < FEWEST:
        method += f"; {TOO_FEW}: {FEWEST} needed"
    elif abs(tau.value) == 1.0:
        method += "; all pairs alike: no interval"
    else:
        low, high = tau_interval(tau.value, n)
        method += ", interval by Fieller's z"
    row = _row(first.measured, Contrast(RANKS, first.name, second.name), tau.value, cells)
    yield replace(row, low=low, high=high, p=tau.p, method=method)
    for name, measured in (first, second):
        value = _with_itself(measured, cells)
        if value is not None:
            row = _row(measured, Contrast(ITSELF, name, name), value, cells)
            yield replace(row, method="mean tau-b between halves of the seeds")


def tau_interval(tau: float, n: int) -> tuple[float, float]:
    """95 % interval of Kendall's tau of n pairs, n > 4 and |tau| < 1.

    Source: Fieller, Hartley and Pearson 1957, "Tests for rank correlation coefficients", Biometrika
    44: atanh tau is about normal with variance .437 / (n - 4).
    """
    half = float(special().ndtri(0.5 + LEVEL / 2)) * (0.437 / (n - 4)) ** 0.5
    return math.tanh(math.atanh(tau) - half), math.tanh(math.atanh(tau) + half)


def _with_itself(measured: Measured, cells: Sequence[str]) -> float | None:
    """Mean tau-b between halves of the seeds that all cells have; None of one seed."""
    seeds = _shared_seeds(measured, cells)
    taus = []
    for half in combinations(seeds, len(seeds) // 2) if len(seeds) > 1 else ():
        rest = [seed for seed in seeds if seed not in half]
        tau = _tau(*(_means(measured, cells, part) for part in (half, rest)))
        taus += [] if tau is None else [tau.value]
    return fmean(taus) if taus else None


def _shared_seeds(measured: Measured, cells: Sequence[str]) -> list[int]:
    by_name = measured.cells()
    return shared_seeds(by_name[name] for name in cells)


def _means(measured: Measured, cells: Sequence[str], seeds: Sequence[int]) -> list[float]:
    """Each cell's mean over some seeds; nothing without a seed."""
    by_name = measured.cells()
    values = [[measured.values[by_name[name][seed]] for seed in seeds] for name in cells]
    return [fmean(each) for each in values if each]


def _tau(first: Sequence[float], second: Sequence[float]) -> _Tau | None:
    """Tau-b and its p; None where either side has all cells alike, or no seed that all have."""
    from scipy.stats import kendalltau  # half a second, which other commands would wait for

    if len(set(first)) < 2 or len(set(second)) < 2:
        return None
    tau = kendalltau(first, second)
    # Rounded, so that perfect agreement is 1 and not a float beside it.
    return _Tau(round(float(tau.statistic), 9), float(tau.pvalue))


def _row(measured: Measured, of: Contrast, value: float, cells: Sequence[str]) -> Estimate:
    """A row whose n counts cells."""
    arm = measured.arm(list(measured.cells()[cells[0]].values()))
    return replace(estimate(measured, of, arm, value), n=len(cells), clusters=len(cells))


# ---- gains and choices ---------------------------------------------------------------------------


def _gains_apart(first: _Model, second: _Model, cells: Sequence[str]) -> Iterator[Estimate]:
    measured = first.measured
    target = measured.panel.task
    for name in cells:
        # The gain of a cell over the target alone, each model on the seeds that both cells have.
        gain = measured.weighted([WeightedCell(1.0, name), WeightedCell(-1.0, target)])
        less = second.measured.weighted([WeightedCell(-1.0, name), WeightedCell(1.0, target)])
        if name == target or not gain or not less:
            continue
        value, ci = contrast([*gain, *less], measured.panel.clusters)
        of = Contrast(APART, f"{first.name}: {name}", f"{second.name}: {name}")
        yield estimate(measured, of, gain[0].arm, value, ci)


def _carried(own: Side, donor: Side, measured: Measured) -> list[Estimate]:
    """A model under the donor's choice, minus under its own; nothing where they are the same.

    Its own was chosen by the same runs that are read, and is still favoured by their luck on test:
    the cost is rather overestimated, and the method names the seeds of the choice.
    """
    target = measured.panel.task
    own_cell, donor_cell = own.chosen.get(target), donor.chosen.get(target)
    if own_cell is None or donor_cell is None or own_cell == donor_cell:
        return []
    note = "chosen on validation by the same seeds"
    return [
        replace(row, subject=f"{own.name}: {donor_cell}", method=f"{row.method}; {note}")
        for row in minus(measured, CARRIED, donor_cell, own_cell)
    ]
