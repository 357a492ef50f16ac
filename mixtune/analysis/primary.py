"""The primary question, with nothing selected: does training on more than the target help it?

Every cell that contains a target counts, whatever it did. Two answers side by side: the mean over
targets with a t over targets, and the terms of one model of all gains (hierarchy).

Knows: cells by their ingredients, groups of ingredients. Does not know: what the groups mean.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import fmean, stdev

import numpy as np

from mixtune.analysis.hierarchy import (
    RUN_SD,
    CellGain,
    Posterior,
    Reference,
    RunScatter,
    posterior,
)
from mixtune.analysis.intervals import LEVEL, special
from mixtune.analysis.measures import Contrast, Measured, estimate
from mixtune.identity import seed as named_seed
from mixtune.records import Estimate
from mixtune.tasks.metrics import FloatArray

TARGET_MEAN = "target-mean"
OVER_TARGETS = "over-targets"
MODEL = "hierarchical-model"
POSTERIOR = "posterior-gain"
FEWEST_TARGETS = 3
FEWEST_CELLS = 12
FEWEST_GAINS = 4
"""Gains below which nothing can be learnt of one from the others."""


def gains(
    measured: Sequence[Measured], groups: Mapping[str, Sequence[str]]
) -> tuple[list[CellGain], dict[str, Reference]]:
    """Of every plain cell of two ingredients or more, for every target that is in it.

    And the single tasks that they are gains over; both in percentage points, better is larger.

    Args:
        measured: the panels, one form and metric a task.
        groups: name → ingredients that belong together, such as general text.
    """
    rows: list[CellGain] = []
    references: dict[str, Reference] = {}
    for m in measured:
        target, cells = m.panel.task, m.cells()
        mixed = [name for name in cells if m.info(name).plain and _mixes(m, name)]
        if target not in cells or not mixed:
            continue
        single = m.arm(list(cells[target].values()))
        arms = [m.arm(list(cells[name].values())) for name in mixed]
        draws = np.stack([arm.draws.mean(0) for arm in arms]) - single.draws.mean(0)
        own, shared = _item_variances(100.0 * draws, m.panel.clusters)
        references[target] = Reference(shared, len(single.values))
        for name, arm, variance in zip(mixed, arms, own, strict=True):
            parts = m.info(name).ingredients
            added = tuple(part for part in parts if part != target)
            belonging = tuple(g for g, members in groups.items() if set(members) & set(parts))
            value = 100.0 * m.sign * (arm.value - single.value)
            seeds = len(arm.values)
            rows.append(CellGain(target, name, added, belonging, value, variance, seeds))
    return rows, references


def _mixes(measured: Measured, name: str) -> bool:
    ingredients = measured.info(name).ingredients
    return measured.panel.task in ingredients and len(ingredients) > 1


def _item_variances(draws: FloatArray, clusters: int) -> tuple[list[float], float]:
    """Variance by items of each of several gains' own, and what they share.

    Shared is the mean covariance of two gains: that of the single task, and of items on which all
    cells differ from it. `draws`: [gains, draws].
    """
    variances = draws.var(1, ddof=1)
    count = len(draws)
    if count == 1:
        return [float(variances[0]) / 2], float(variances[0]) / 2
    between = count**2 * draws.mean(0).var(ddof=1) - variances.sum()
    shared = min(max(float(between) / (count * (count - 1)), 0.0), float(variances.min()))
    # A bootstrap variance of n clusters is too small by (n - 1) / n.
    inflation = clusters / (clusters - 1)
    return [inflation * (float(variance) - shared) for variance in variances], inflation * shared


def run_scatter(measured: Sequence[Measured]) -> RunScatter | None:
    """Scatter of runs of cells that hold the target, pooled over targets; None of single runs."""
    spreads, parts = [], []
    for m in measured:
        spread = m.spread(True)
        holding = [n for n in m.cells() if m.panel.task in m.info(n).ingredients]
        arms = [m.arm(list(m.cells()[name].values())) for name in holding]
        noises = [arm.noise for arm in arms if arm.noise is not None]
        if spread is not None and noises:
            spreads.append(spread)
            parts.append(1e4 * fmean(noises))
    df = sum(spread.df for spread in spreads)
    if not df:
        return None
    variance = sum(1e4 * spread.variance * spread.df for spread in spreads) / df
    return RunScatter(variance, df, fmean(parts))


def primary(
    measured: Sequence[Measured], groups: Mapping[str, Sequence[str]], margin: float = 0.0
) -> tuple[list[Estimate], str]:
    """Per-target means, the mean over targets, the model's terms; and what was left out.

    "target-mean": over the cells of a target, which share the noise of its single task, so without
    an interval. "over-targets": over the targets' means, the t over targets. "hierarchical-model":
    the terms of one model of all gains (hierarchy), with posterior intervals; p is twice the
    posterior probability of the less likely sign. "posterior-gain": what that model leaves of each
    cell's gain, its chance of being the target's best (the single task among them), and that of a
    gain above `margin`.
    """
    rows, references = gains(measured, groups)
    if not rows:
        return [], "no cell contains a target that is also trained alone"
    template = _template(measured[0])
    by_target: dict[str, list[float]] = {}
    for row in rows:
        by_target.setdefault(row.target, []).append(row.value / 100.0)
    estimates = [
        replace(
            template,
            quantity=TARGET_MEAN,
            subject="cells with it",
            target=target,
            value=fmean(values),
            n=len(values),
            clusters=len(values),
            method=f"mean of {len(values)} cells; no interval: they share one single task's noise",
        )
        for target, values in by_target.items()
    ]
    overall = _mean(template, [fmean(values) for values in by_target.values()], "targets")
    estimates.append(replace(overall, quantity=OVER_TARGETS, subject="all cells"))
    reason = _too_few(rows)
    if len(rows) < FEWEST_GAINS:
        return estimates, reason
    fitted = posterior(rows, references, run_scatter(measured), named_seed(0, "hierarchy"))
    estimates += [] if reason else _terms(fitted, template)
    estimates += [row for m in measured for row in _posterior_gains(fitted, m, margin)]
    return estimates, reason or _left_out(fitted)


def _too_few(rows: Sequence[CellGain]) -> str:
    """Why there is no model, or ""."""
    targets, cells = {row.target for row in rows}, {row.cell for row in rows}
    if len(targets) >= FEWEST_TARGETS and len(rows) >= FEWEST_CELLS and len(cells) >= 4:
        return ""
    return (
        f"no terms over targets: {len(rows)} cells of {len(targets)} targets, at least "
        f"{FEWEST_CELLS} of {FEWEST_TARGETS} are needed"
    )


def _terms(fitted: Posterior, template: Estimate) -> list[Estimate]:
    tail = (1.0 - LEVEL) / 2
    n = len(fitted.gains)
    rows = []
    for name, draws in zip(fitted.terms, fitted.term_draws.T / 100.0, strict=True):
        low, high = np.quantile(draws, [tail, 1.0 - tail])
        below = float((draws < 0).mean())
        row = replace(template, quantity=MODEL, subject=name, value=float(draws.mean()), n=n)
        row = replace(row, clusters=n, low=float(low), high=float(high))
        # As many draws as there are, no p is smaller than twice the share of one.
        p = 2.0 * max(min(below, 1.0 - below), 1.0 / len(draws))
        method = f"hierarchical model of {n} gains, posterior{_assumed_runs(fitted)}"
        rows.append(replace(row, p=min(p, 1.0), method=method))
    return rows


def _assumed_runs(fitted: Posterior) -> str:
    """A note where the scatter of runs is not measured."""
    return "" if fitted.repeated else f"; runs assumed to scatter by about {RUN_SD:g} points"


def _posterior_gains(fitted: Posterior, measured: Measured, margin: float) -> Iterator[Estimate]:
    """A row for each cell of a target."""
    target = measured.panel.task
    own, draws = fitted.on(target)
    better = draws / 100.0
    tail = (1.0 - LEVEL) / 2
    # The single task is a candidate, too: its gain is zero.
    leads = np.argmax(np.column_stack([np.zeros(len(better)), better]), 1)
    cells = measured.cells()
    for place, gain in enumerate(own):
        arm = measured.arm(list(cells[gain.cell].values()))
        of = Contrast(POSTERIOR, gain.cell, target)
        values = measured.sign * better[:, place]
        row = estimate(measured, of, arm, float(values.mean()))
        low, high = np.quantile(values, [tail, 1.0 - tail])
        method = f"posterior of all gains{_assumed_runs(fitted)}"
        row = replace(row, low=float(low), high=float(high), method=method)
        best = float((leads == place + 1).mean())
        above = float((better[:, place] > margin).mean())
        yield replace(row, margin=margin, chance_best=best, chance_above=above)


def _left_out(fitted: Posterior) -> str:
    why = "constant over the cells, or implied by the other terms"
    terms = ", ".join(f"{name} ({why})" for name in fitted.left_out)
    return f"not in the model: {terms}" if terms else ""


def _template(measured: Measured) -> Estimate:
    """A row over all targets, without a value."""
    return Estimate(
        quantity="",
        subject="",
        reference="step-matched single task",
        target="",
        split=measured.panel.split,
        form="main",
        metric="main",
        value=0.0,
        low=None,
        high=None,
        n=0,
        clusters=0,
        seeds=max((len(seeds) for seeds in measured.cells().values()), default=0),
        method="",
        seed=measured.seed,
    )


def _mean(template: Estimate, values: Sequence[float], unit: str) -> Estimate:
    """A mean with its t interval over cells or targets (`unit`)."""
    n, value = len(values), fmean(values)
    row = replace(template, value=value, n=n, clusters=n, method=f"too few: {n} {unit}")
    if n < FEWEST_TARGETS or stdev(values) == 0:
        return row
    error = stdev(values) / n**0.5
    half = float(special().stdtrit(n - 1, 0.5 + LEVEL / 2)) * error
    p = 2.0 * float(special().stdtr(n - 1, -abs(value) / error))
    return replace(row, low=value - half, high=value + half, method=f"t over {n} {unit}", p=p)
