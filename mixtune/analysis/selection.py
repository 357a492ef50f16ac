"""The cell chosen for a target on validation, and the lead that chance gives the best of many.

Knows: cells, seeds, values. Does not know: files, fresh seeds, claims.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from mixtune.analysis.measures import (
    Contrast,
    Measured,
    PanelMetric,
    estimate,
    main_only,
    shared_seeds,
)
from mixtune.identity import generator
from mixtune.records import Choice, Estimate
from mixtune.tasks.metrics import FloatArray

BEST_OF_N = "best-of-n"
CURVE = "tuning-curve"
COCKTAILS, SINGLE = "cocktails", "single task"
"""The two arms of a tuning curve."""
CURVE_POINTS = 100


def best_cell(measured: Measured) -> str | None:
    """The cell with the best mean over the seeds that all cells have, ties by name.

    A cell with a seed of its own gains nothing from a lucky one. None without a shared seed.
    """
    cells = measured.cells()
    means = _means(measured, cells, shared_seeds(cells.values()))
    return _best(measured, means) if means else None


Cells = Mapping[str, Mapping[int, str]]
"""Cell → seed → system."""


def _means(measured: Measured, cells: Cells, seeds: Sequence[int]) -> dict[str, float]:
    """Each cell's mean over some seeds; empty without a seed."""
    systems = {name: [own[seed] for seed in seeds] for name, own in cells.items() if seeds}
    return {n: float(np.mean([measured.values[s] for s in own])) for n, own in systems.items()}


def _best(measured: Measured, means: Mapping[str, float]) -> str:
    return min(means, key=lambda name: (-measured.sign * means[name], name))


def choose(measured: Sequence[Measured], main: Iterable[PanelMetric]) -> list[Choice]:
    """The best cocktail and the best single-task cell of each target, by name where they tie.

    Candidates are the cells that were trained: a merged system is a control. A target that is not
    trained alone, has no cocktail, or whose cells share no seed has no choice.

    Args:
        measured: the panels of validation.
        main: the form and metric that each target is chosen by.
    """
    return [choice for m in main_only(measured, main) for choice in _choose(m)]


def _choose(measured: Measured) -> list[Choice]:
    target = measured.panel.task
    cells = measured.trained_cells()
    alone = [name for name in cells if measured.info(name).ingredients == (target,)]
    mixed = [name for name in cells if name not in alone]
    shared = shared_seeds(cells.values())
    if target not in alone or not mixed or not shared:
        return []
    means = _means(measured, cells, shared)
    cocktail, single = (_best(measured, {n: means[n] for n in names}) for names in (mixed, alone))
    return [
        Choice(
            target=target,
            form=measured.panel.form,
            metric=measured.metric.name,
            cocktail=cocktail,
            value=means[cocktail],
            single=single,
            single_value=means[single],
            plain=target,
            seeds=tuple(shared),
            tried=sum(len(cells[name]) for name in mixed),
            tried_single=sum(len(cells[name]) for name in alone),
        )
    ]


# ---- lead of the best of many --------------------------------------------------------------------


class _Noise(NamedTuple):
    """Noise of cells' means on every draw [cells, draws]; `repeated`: runs were repeated."""

    draws: FloatArray
    repeated: bool


def best_of_n(measured: Sequence[Measured]) -> list[Estimate]:
    """The gain that chance alone gives the best of N cells, beside the best one.

    A bootstrap in which every cell is recentred to a common mean: the mean of the largest of N over
    resamples of clusters, shared by all cells, and normal run noise of the pooled variance. Where
    runs were not repeated it is of items alone, and the method says so.
    """
    return [row for m in measured for row in _best_of_n(m)]


def _best_of_n(measured: Measured) -> list[Estimate]:
    cells = measured.trained_cells()
    if len(cells) < 2:
        return []
    noise = _noise(measured, cells)
    gain = float((measured.sign * noise.draws).max(0).mean())
    means = {name: measured.arm(list(seeds.values())).value for name, seeds in cells.items()}
    best = _best(measured, means)
    method = f"bootstrap of {len(cells)} cells recentred to a common mean, clusters"
    unrepeated = " only: runs were not repeated, so it is larger than this"
    method += " and runs" if noise.repeated else unrepeated
    arm = measured.arm(list(cells[best].values()))
    of = Contrast(BEST_OF_N, best, f"{len(cells)} cells")
    return [replace(estimate(measured, of, arm, measured.sign * gain), method=method)]


def _noise(measured: Measured, cells: Cells) -> _Noise:
    """Noise of each cell's mean by items and runs.

    Runs of a cell differ on the same items by more than run noise: by what resampling items shows
    already. That part of the pooled variance is left out.
    """
    arms = [measured.arm(list(seeds.values())) for seeds in cells.values()]
    by_items = np.stack([arm.draws.mean(0) - arm.value for arm in arms])
    panel = measured.panel
    name = f"{panel.task}/{panel.split}/{panel.form}/{measured.metric.name}"
    rng = generator(measured.seed, "run-noise", name)
    noises = [arm.noise for arm in arms if arm.noise is not None]
    item_part = float(np.mean(noises)) if noises else 0.0
    scale = np.zeros(len(cells))
    for index, arm in enumerate(arms):
        if arm.spread is not None:
            scale[index] = (max(0.0, arm.spread.variance - item_part) / len(arm.values)) ** 0.5
    return _Noise(by_items + scale[:, None] * rng.normal(size=by_items.shape), bool(noises))


def expected_maximum(values: Sequence[float], k: int) -> float:
    """Exact mean of the largest of k of these values, over all subsets of k (Dodge 2019, unbiased).

    1 ≤ k ≤ number of values.
    """
    ordered = np.sort(values)
    # The i-th smallest (from 0) is the largest of C(i, k - 1) of the C(n, k) subsets: the share of
    # the largest is k / n, and each share is the next one times (i - k + 2) / (i + 1), which keeps
    # numbers small where the binomials themselves have hundreds of digits.
    n = len(ordered)
    index = np.arange(n - 2, k - 2, -1)
    shares = np.cumprod(np.concatenate([[k / n], (index - k + 2) / (index + 1)]))
    return float(shares[::-1] @ ordered[k - 1 :])


def tuning_curves(measured: Sequence[Measured]) -> list[Estimate]:
    """The best score to expect of k runs, in either arm: reference "k runs".

    Subjects: "cocktails" and "single task"; over all subsets of the runs at hand, whatever cell
    they are of. Its runs are not independent draws, so there is no band.
    """
    return [row for m in measured for row in _curves(m)]


def _numbers_of_runs(runs: int) -> list[int]:
    """Points of a tuning curve: each number of runs, of many only a hundred beyond a hundred."""
    if runs <= 2 * CURVE_POINTS:
        return list(range(1, runs + 1))
    thinned = np.geomspace(CURVE_POINTS, runs, CURVE_POINTS).round().astype(int)
    return sorted({*range(1, CURVE_POINTS + 1), *thinned.tolist()})


def _curves(measured: Measured) -> list[Estimate]:
    target = measured.panel.task
    arms: dict[str, list[str]] = {COCKTAILS: [], SINGLE: []}
    for name, seeds in measured.trained_cells().items():
        alone = measured.info(name).ingredients == (target,)
        arms[SINGLE if alone else COCKTAILS] += seeds.values()
    rows = []
    for name, systems in arms.items():
        if not systems:
            continue
        method = f"exact expected maximum over subsets of {len(systems)} runs"
        values = sorted(measured.sign * measured.values[system] for system in systems)
        arm = measured.arm(systems[:1])
        for k in _numbers_of_runs(len(values)):
            value = measured.sign * expected_maximum(values, k)
            row = estimate(measured, Contrast(CURVE, name, f"{k} runs"), arm, value)
            rows.append(replace(row, method=method))
    return rows
