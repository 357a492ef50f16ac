"""The primary question, with nothing selected: does training on more than the target help it?

Every cell that contains a target counts, whatever it did. Two answers side by side: the mean over
targets with a t over targets, and a mixed model with a term for the other ingredients of a cell.

Knows: cells by their ingredients, groups of ingredients. Does not know: what the groups mean.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import NamedTuple

import numpy as np

from mixtune.analysis.intervals import LEVEL, special
from mixtune.analysis.measures import Measured
from mixtune.records import Estimate

TARGET_MEAN = "target-mean"
OVER_TARGETS = "over-targets"
MODEL = "mixed-model"
INTERCEPT = "one other ingredient"
SLOPE = "each further ingredient"
FEWEST_TARGETS = 3
FEWEST_CELLS = 12


@dataclass(frozen=True, slots=True)
class Gain:
    """A cell that contains a target, minus the target alone: mean over the seeds that both have.

    `extra`: its ingredients beside the target.
    """

    target: str
    cell: str
    extra: int
    groups: tuple[str, ...]
    value: float
    seeds: int


def gains(measured: Sequence[Measured], groups: Mapping[str, Sequence[str]]) -> list[Gain]:
    """Of every plain cell of two ingredients or more, for every target that is in it.

    Args:
        measured: the panels, one form and metric a task.
        groups: name → ingredients that belong together, such as general text.
    """
    rows = []
    for m in measured:
        target, cells = m.panel.task, m.cells()
        alone = cells.get(target, {})
        for name, seeds in cells.items():
            info = m.info(name)
            parts = info.ingredients
            shared = sorted(seeds.keys() & alone.keys())
            if not info.plain or target not in parts or len(parts) < 2 or not shared:
                continue
            differences = [m.values[seeds[s]] - m.values[alone[s]] for s in shared]
            own = tuple(g for g, ingredients in groups.items() if set(ingredients) & set(parts))
            value = m.sign * fmean(differences)
            rows.append(Gain(target, name, len(parts) - 1, own, value, len(shared)))
    return rows


def primary(
    measured: Sequence[Measured], groups: Mapping[str, Sequence[str]]
) -> tuple[list[Estimate], str]:
    """Per-target means, the mean over targets, the mixed model's terms; and what was left out.

    "target-mean": over the cells of a target, its t over cells, which are not independent: read it
    as a description. "over-targets": over the targets' means, the t over targets. "mixed-model":
    fixed effects of `gain ~ others + a term for each group + (1 + others | target) + (1 | cell)`,
    fitted by REML (statsmodels); Wald intervals.
    """
    rows = gains(measured, groups)
    if not rows:
        return [], "no cell contains a target that is also trained alone"
    template = _template(measured[0])
    by_target: dict[str, list[float]] = {}
    for row in rows:
        by_target.setdefault(row.target, []).append(row.value)
    estimates = [
        replace(
            _mean(template, values, "cells"),
            quantity=TARGET_MEAN,
            subject="cells with it",
            target=target,
        )
        for target, values in by_target.items()
    ]
    overall = _mean(template, [fmean(values) for values in by_target.values()], "targets")
    estimates.append(replace(overall, quantity=OVER_TARGETS, subject="all cells"))
    fitted, note = _model(rows, template)
    return estimates + fitted, note


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


# ---- mixed model ---------------------------------------------------------------------------------


class _Fit(NamedTuple):
    """Fixed effects and their standard errors."""

    effects: np.ndarray
    errors: np.ndarray


def _model(rows: Sequence[Gain], template: Estimate) -> tuple[list[Estimate], str]:
    """Fixed effects, and why there are none or which terms are left out."""
    targets, cells = {r.target for r in rows}, {r.cell for r in rows}
    if len(targets) < FEWEST_TARGETS or len(rows) < FEWEST_CELLS or len(cells) < 4:
        reason = (
            f"no mixed model: {len(rows)} cells of {len(targets)} targets, at least {FEWEST_CELLS} "
            f"of {FEWEST_TARGETS} are needed"
        )
        return [], reason
    columns, left_out = _columns(rows)
    fit = _fit(rows, columns)
    if isinstance(fit, str):
        return [], f"no mixed model: {fit}"
    n = len(rows)
    method = f"mixed model over {n} cells and targets, REML, Wald"
    estimates = []
    for index, name in enumerate(columns):
        effect, error = float(fit.effects[index]), float(fit.errors[index])
        if not math.isfinite(error) or error <= 0:
            return [], "no mixed model: its standard errors could not be computed"
        half = float(special().ndtri(0.5 + LEVEL / 2)) * error
        p = 2.0 * float(special().ndtr(-abs(effect) / error))
        row = replace(template, quantity=MODEL, subject=name, value=effect, n=n, clusters=n)
        row = replace(row, low=effect - half, high=effect + half, p=p, method=method)
        estimates.append(row)
    return estimates, f"not in the model: {', '.join(left_out)}" if left_out else ""


def _columns(rows: Sequence[Gain]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Independent columns of the fixed effects, and the terms that depend on others."""
    groups = sorted({group for row in rows for group in row.groups})
    terms = {SLOPE: np.array([r.extra - 1.0 for r in rows])}
    terms |= {f"has {g}": np.array([float(g in r.groups) for r in rows]) for g in groups}
    columns, left_out = {INTERCEPT: np.ones(len(rows))}, []
    for name, column in terms.items():
        trial = np.stack([*columns.values(), column], 1)
        if np.linalg.matrix_rank(trial) == trial.shape[1]:
            columns[name] = column
        else:
            left_out.append(f"{name} (constant over the cells, or implied by the other terms)")
    return columns, left_out


def _fit(rows: Sequence[Gain], columns: Mapping[str, np.ndarray]) -> _Fit | str:
    """The mixed model, or why it could not be fitted."""
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

    targets = sorted({r.target for r in rows})
    cells = sorted({r.cell for r in rows})
    at_target = np.array([[float(r.target == t) for t in targets] for r in rows])
    at_cell = np.array([[float(r.cell == c) for c in cells] for r in rows])
    # Random effects as variance components: (1 + others | target) + (1 | cell).
    parts = {"target": at_target, "cell": at_cell}
    if SLOPE in columns:
        parts["target slope"] = at_target * columns[SLOPE][:, None]
    names = [[f"{name}{i}" for i in range(part.shape[1])] for name, part in parts.items()]
    spec = VCSpec(list(parts), [[n] for n in names], [[p] for p in parts.values()])
    outcome = np.array([r.value for r in rows])
    if not np.ptp(outcome):
        return "all gains are the same"
    design = np.stack(list(columns.values()), 1)
    with warnings.catch_warnings():
        # Variances on the boundary (nothing between targets) are an answer; not converging is not.
        warnings.simplefilter("ignore")
        try:
            # Percentage points: variances of 1e-4 stop the optimiser early.
            model = MixedLM(100.0 * outcome, design, np.ones(len(rows)), exog_vc=spec)
            fit = model.fit(reml=True, method=["powell", "lbfgs"])
        except (np.linalg.LinAlgError, ValueError) as error:
            return str(error)
    if not fit.converged:
        return "the fit did not converge"
    return _Fit(fit.fe_params / 100.0, fit.bse_fe / 100.0)
