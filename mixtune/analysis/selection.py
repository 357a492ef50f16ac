"""Which cell is chosen for a target on validation, and what chance alone gives the best of many.

Knows: cells, seeds, values. Does not know: files, fresh seeds, claims.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from math import comb

import numpy as np

from mixtune.analysis.measures import Measured, PanelMetric, estimate, main_only
from mixtune.identity import generator
from mixtune.records import Choice, Estimate
from mixtune.tasks.metrics import FloatArray

BEST_OF_N = "best-of-n"
CURVE = "tuning-curve"
SHRUNKEN = "shrunken"
COCKTAILS, SINGLE = "cocktails", "single task"
"""The two arms of a tuning curve."""


def choose(measured: Sequence[Measured], main: Iterable[PanelMetric]) -> list[Choice]:
    """The best cocktail and the best single-task cell of each target, by name where they tie.

    Candidates are the cells that were trained: a merged system is a control. A target that is not
    trained alone, has no cocktail, or whose cells share no seed has no choice.

    Args:
        measured: what is measured on validation.
        main: the form and metric that each target is chosen by.
    """
    return [choice for one in main_only(measured, main) for choice in _choose(one)]


def _choose(measured: Measured) -> list[Choice]:
    target = measured.panel.task
    cells = trained(measured)
    alone = [name for name in cells if _parts(measured, cells[name]) == (target,)]
    mixed = [name for name in cells if name not in alone]
    shared = sorted(set.intersection(*map(set, cells.values()))) if cells else []
    if target not in alone or not mixed or not shared:
        return []
    sign = 1.0 if measured.metric.higher_is_better else -1.0

    def mean(name: str) -> float:
        return float(np.mean([measured.values[cells[name][seed]] for seed in shared]))

    def best(names: Sequence[str]) -> str:
        return min(names, key=lambda name: (-sign * mean(name), name))

    cocktail, single = best(mixed), best(alone)
    return [
        Choice(
            target=target,
            form=measured.panel.form,
            metric=measured.metric.name,
            cocktail=cocktail,
            value=mean(cocktail),
            single=single,
            single_value=mean(single),
            plain=target,
            seeds=tuple(shared),
            tried=sum(len(cells[name]) for name in mixed),
            tried_single=sum(len(cells[name]) for name in alone),
        )
    ]


def trained(measured: Measured) -> dict[str, dict[int, str]]:
    """Cell → seed → system of the cells that were trained: not sums of others' adapters."""
    return {
        name: seeds for name, seeds in measured.cells().items() if not name.endswith(" (merged)")
    }


def _parts(measured: Measured, by_seed: Mapping[int, str]) -> tuple[str, ...]:
    return measured.infos[next(iter(by_seed.values()))].ingredients


# ---- what the best of many is worth --------------------------------------------------------------


def best_of_n(found: Sequence[Measured]) -> list[Estimate]:
    """The gain that chance alone gives the best of N cells, beside the best one.

    A bootstrap in which every cell is recentred to a common mean: the mean of the largest of N over
    resamples of clusters, shared by all cells, and normal run noise of the pooled variance. Where
    runs were not repeated it is of items alone, and said so.
    """
    return [row for measured in found for row in _best_of_n(measured)]


def _best_of_n(measured: Measured) -> list[Estimate]:
    cells = trained(measured)
    if len(cells) < 2:
        return []
    drawn = np.stack([_centred(measured, list(seeds.values())) for seeds in cells.values()])
    noise, repeated = _run_noise(measured, cells, drawn.shape)
    sign = 1.0 if measured.metric.higher_is_better else -1.0
    gain = float((sign * (drawn + noise)).max(0).mean())
    means = {name: measured.arm(list(seeds.values())).value for name, seeds in cells.items()}
    best = min(means, key=lambda name: (-sign * means[name], name))
    method = f"bootstrap of {len(cells)} cells recentred to a common mean, clusters"
    method += (
        " and runs" if repeated else " only: runs were not repeated, so it is larger than this"
    )
    arm = measured.arm(list(cells[best].values()))
    row = estimate(measured, (BEST_OF_N, best, f"{len(cells)} cells"), arm, sign * gain, None)
    return [replace(row, method=method)]


def _centred(measured: Measured, systems: Sequence[str]) -> FloatArray:
    """A cell's mean on every draw, less its own value [draws]."""
    arm = measured.arm(systems)
    centred: FloatArray = arm.draws.mean(0) - arm.value
    return centred


def _run_noise(
    measured: Measured, cells: Mapping[str, Mapping[int, str]], shape: tuple[int, ...]
) -> tuple[FloatArray, bool]:
    """Normal noise of each cell's mean over its seeds [cells, draws], and whether it is known.

    Runs of a cell differ on the same items by more than run noise: by what resampling items shows
    already. That part of the pooled variance is left out.
    """
    panel = measured.panel
    name = f"{panel.task}/{panel.split}/{panel.form}/{measured.metric.name}"
    rng = generator(measured.seed, "run-noise", name)
    arms = [measured.arm(list(seeds.values())) for seeds in cells.values()]
    noises = [arm.noise for arm in arms if arm.noise is not None]
    by_items = float(np.mean(noises)) if noises else 0.0
    scale = np.zeros(len(cells))
    for place, arm in enumerate(arms):
        if arm.spread is not None:
            scale[place] = (max(0.0, arm.spread.variance - by_items) / len(arm.values)) ** 0.5
    return scale[:, None] * rng.normal(size=shape), bool(noises)


def shrunken(found: Sequence[Measured]) -> list[Estimate]:
    """The best cell's posterior mean: what is left of it when it is drawn towards the others.

    Normal empirical Bayes: the cells' true values scatter with the variance of their means less
    that of their noise (method of moments), the noise being what resampling and runs leave after
    what all cells share (Efron and Morris 1975).
    """
    return [row for measured in found for row in _shrunken(measured)]


def _shrunken(measured: Measured) -> list[Estimate]:
    cells = trained(measured)
    if len(cells) < 4:
        return []
    drawn = np.stack([_centred(measured, list(seeds.values())) for seeds in cells.values()])
    noise, _ = _run_noise(measured, cells, drawn.shape)
    apart = drawn + noise
    apart = apart - apart.mean(0)
    error = float((apart**2).mean()) * len(cells) / (len(cells) - 1)
    values = np.array([measured.arm(list(seeds.values())).value for seeds in cells.values()])
    grand, scatter = float(values.mean()), float(values.var(ddof=1))
    kept = max(0.0, scatter - error) / scatter if scatter else 0.0
    sign = 1.0 if measured.metric.higher_is_better else -1.0
    best = min(zip(cells, values, strict=True), key=lambda pair: (-sign * pair[1], pair[0]))
    arm = measured.arm(list(cells[best[0]].values()))
    value = grand + kept * (float(best[1]) - grand)
    row = estimate(measured, (SHRUNKEN, best[0], f"{len(cells)} cells"), arm, value, None)
    return [
        replace(
            row, method=f"empirical Bayes over {len(cells)} cells, {kept:.0%} of its lead is kept"
        )
    ]


def expected_maximum(values: Sequence[float], k: int) -> float:
    """Exact mean of the largest of k of these values, over all subsets of k (Dodge 2019, unbiased).

    1 ≤ k ≤ number of values.
    """
    ordered, total = sorted(values), comb(len(values), k)
    return sum(comb(i, k - 1) * value for i, value in enumerate(ordered)) / total


def tuning_curves(found: Sequence[Measured]) -> list[Estimate]:
    """The best score to expect of k runs, in either arm: reference "k runs".

    Subjects: "cocktails" and "single task"; over all subsets of the runs at hand, whatever cell
    they are of. Its runs are not independent draws, so there is no band.
    """
    return [row for measured in found for row in _curves(measured)]


def _curves(measured: Measured) -> list[Estimate]:
    target = measured.panel.task
    sign = 1.0 if measured.metric.higher_is_better else -1.0
    arms: dict[str, list[str]] = {COCKTAILS: [], SINGLE: []}
    for seeds in trained(measured).values():
        arm = SINGLE if _parts(measured, seeds) == (target,) else COCKTAILS
        arms[arm] += seeds.values()
    rows = []
    for name, systems in arms.items():
        method = f"exact expected maximum over subsets of {len(systems)} runs"
        values = [sign * measured.values[system] for system in systems]
        for k in range(1, len(values) + 1):
            one = measured.arm(systems[:1])
            value = sign * expected_maximum(values, k)
            row = estimate(measured, (CURVE, name, f"{k} runs"), one, value, None)
            rows.append(replace(row, method=method))
    return rows
