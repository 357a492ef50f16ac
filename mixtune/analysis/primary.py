"""The primary question, with nothing selected: does training on more than the target help it?

Every cell that contains a target is in it, whatever it did. Two answers beside one another: the
mean over targets with a t over targets, and a mixed model with a term for what else is in a cell.

Knows: cells by their ingredients, groups of ingredients. Does not know: what the groups mean.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import numpy as np

from mixtune.analysis.intervals import LEVEL, special
from mixtune.analysis.measures import Measured
from mixtune.records import Estimate
from mixtune.study.design import is_plain, members

TARGET_MEAN = "target-mean"
OVER_TARGETS = "over-targets"
MODEL = "mixed-model"
INTERCEPT = "one other ingredient"
SLOPE = "each further ingredient"
FEWEST_TARGETS = 3
FEWEST_CELLS = 12


@dataclass(frozen=True, slots=True)
class Gain:
    """A cell that contains a target, minus the target alone: mean over the seeds that both have."""

    target: str
    cell: str
    others: int
    groups: tuple[str, ...]
    value: float
    seeds: int


def gains(found: Sequence[Measured], groups: Mapping[str, Sequence[str]]) -> list[Gain]:
    """Of every plain cell of two ingredients or more, for every target that is in it.

    Args:
        found: what is measured, one form and metric a task.
        groups: name → ingredients that belong together, such as general text.
    """
    rows = []
    for measured in found:
        target, cells = measured.panel.task, measured.cells()
        alone = cells.get(target, {})
        sign = 1.0 if measured.metric.higher_is_better else -1.0
        for name, seeds in cells.items():
            parts = members(name)
            shared = sorted(seeds.keys() & alone.keys())
            if not is_plain(name) or target not in parts or len(parts) < 2 or not shared:
                continue
            apart = [measured.values[seeds[s]] - measured.values[alone[s]] for s in shared]
            held = tuple(g for g, members_ in groups.items() if set(members_) & set(parts))
            value = sign * fmean(apart)
            rows.append(Gain(target, name, len(parts) - 1, held, value, len(shared)))
    return rows


def primary(
    found: Sequence[Measured], groups: Mapping[str, Sequence[str]]
) -> tuple[list[Estimate], str]:
    """Per-target means, the mean over targets, the mixed model's terms; and what could not be done.

    "target-mean": over the cells of a target, its t over cells, which are not independent: read it
    as a description. "over-targets": over the targets' means, the t over targets. "mixed-model":
    fixed effects of `gain ~ others + a term for each group + (1 + others | target) + (1 | cell)`,
    fitted by REML (statsmodels); Wald intervals.
    """
    rows = gains(found, groups)
    if not rows:
        return [], "no cell contains a target that is also trained alone"
    where = found[0]
    by_target: dict[str, list[Gain]] = {}
    for row in rows:
        by_target.setdefault(row.target, []).append(row)
    made = [
        _mean((TARGET_MEAN, "cells with it", target), [r.value for r in own], where, "cells")
        for target, own in by_target.items()
    ]
    means = [fmean(r.value for r in own) for own in by_target.values()]
    made.append(_mean((OVER_TARGETS, "all cells", ""), means, where, "targets"))
    fitted, why = _model(rows, where)
    return made + fitted, why


def _mean(
    what: tuple[str, str, str], values: Sequence[float], where: Measured, of: str
) -> Estimate:
    n, low, high, p = len(values), None, None, None
    value = fmean(values)
    if n >= FEWEST_TARGETS and stdev(values) > 0:
        error = stdev(values) / n**0.5
        half = float(special().stdtrit(n - 1, 0.5 + LEVEL / 2)) * error
        low, high = value - half, value + half
        p = 2.0 * float(special().stdtr(n - 1, -abs(value) / error))
    method = f"t over {n} {of}" if low is not None else f"too few: {n} {of}"
    return _row(what, (value, low, high, p), where, (n, method))


def _row(
    what: tuple[str, str, str],
    numbers: tuple[float, float | None, float | None, float | None],
    where: Measured,
    how: tuple[int, str],
) -> Estimate:
    quantity, subject, target = what
    value, low, high, p = numbers
    return Estimate(
        quantity=quantity,
        subject=subject,
        reference="step-matched single task",
        target=target,
        split=where.panel.split,
        form="main",
        metric="main",
        value=value,
        low=low,
        high=high,
        n=how[0],
        clusters=how[0],
        seeds=max((len(s) for s in where.cells().values()), default=0),
        method=how[1],
        seed=where.seed,
        p=p,
    )


def _model(rows: Sequence[Gain], where: Measured) -> tuple[list[Estimate], str]:
    """Fixed effects, and why there are none or which terms are left out."""
    targets, cells = {r.target for r in rows}, {r.cell for r in rows}
    if len(targets) < FEWEST_TARGETS or len(rows) < FEWEST_CELLS or len(cells) < 4:
        why = (
            f"no mixed model: {len(rows)} cells of {len(targets)} targets, at least {FEWEST_CELLS} "
            f"of {FEWEST_TARGETS} are needed"
        )
        return [], why
    columns, left_out = _columns(rows)
    fit, why = _fit(rows, columns)
    if fit is None:
        return [], why
    method = f"mixed model over {len(rows)} cells and targets, REML, Wald"
    made = []
    for place, name in enumerate(columns):
        value, error = float(fit.fe_params[place]), float(fit.bse_fe[place])
        if not math.isfinite(error) or error <= 0:
            return [], "no mixed model: its standard errors could not be computed"
        half = float(special().ndtri(0.5 + LEVEL / 2)) * error
        p = 2.0 * float(special().ndtr(-abs(value) / error))
        numbers = (value, value - half, value + half, p)
        made.append(_row((MODEL, name, ""), numbers, where, (len(rows), method)))
    return made, f"not in the model: {', '.join(left_out)}" if left_out else ""


def _columns(rows: Sequence[Gain]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Columns of the fixed effects that can be told apart, and the terms that cannot."""
    groups = sorted({group for row in rows for group in row.groups})
    wanted = {SLOPE: np.array([r.others - 1.0 for r in rows])}
    wanted |= {f"has {g}": np.array([float(g in r.groups) for r in rows]) for g in groups}
    found, left_out = {INTERCEPT: np.ones(len(rows))}, []
    for name, column in wanted.items():
        trial = np.stack([*found.values(), column], 1)
        if np.linalg.matrix_rank(trial) == trial.shape[1]:
            found[name] = column
        else:
            left_out.append(f"{name} (the same in every cell, or told by the others)")
    return found, left_out


def _fit(rows: Sequence[Gain], columns: Mapping[str, np.ndarray]) -> tuple["_Scaled | None", str]:
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

    targets = sorted({r.target for r in rows})
    cells = sorted({r.cell for r in rows})
    at_target = np.array([[float(r.target == t) for t in targets] for r in rows])
    at_cell = np.array([[float(r.cell == c) for c in cells] for r in rows])
    parts = {"target": at_target, "cell": at_cell}
    if SLOPE in columns:
        parts["target slope"] = at_target * columns[SLOPE][:, None]
    names = [[f"{name}{i}" for i in range(part.shape[1])] for name, part in parts.items()]
    spec = VCSpec(list(parts), [[n] for n in names], [[p] for p in parts.values()])
    outcome = np.array([r.value for r in rows])
    if not np.ptp(outcome):
        return None, "no mixed model: all gains are the same"
    design = np.stack(list(columns.values()), 1)
    with warnings.catch_warnings():
        # Variances on the boundary (nothing between targets) are an answer; not converging is not.
        warnings.simplefilter("ignore")
        try:
            # Percentage points: variances of 1e-4 stop the optimiser early.
            model = MixedLM(100.0 * outcome, design, np.ones(len(rows)), exog_vc=spec)
            fit = model.fit(reml=True, method=["powell", "lbfgs"])
        except (np.linalg.LinAlgError, ValueError) as error:
            return None, f"no mixed model: {error}"
    if not fit.converged:
        return None, "no mixed model: the fit did not converge"
    return _Scaled(fit.fe_params / 100.0, fit.bse_fe / 100.0), ""


@dataclass(frozen=True, slots=True)
class _Scaled:
    fe_params: np.ndarray
    bse_fe: np.ndarray
