"""Gains of all cells on all targets in one model: what is left of each, and which cell is best.

The gain of a cell over a target's single task, in percentage points, is

    intercept + slope · (added − 1) + a term for each group that the cell has
    + target + target's slope + target's group terms       (1 + added + groups | target)
    + mean effect of the added ingredients                 (1 | ingredient)
    + the same on this target                              (1 | ingredient × target)
    + cell + cell × target

`added` counts the cell's ingredients beside the target. What is measured is that plus noise: of
items and runs of the cell, and of the single task, which all gains on a target share. The variance
of items is that of the cluster bootstrap. Effects that are in parentheses are normal with mean zero
and variances that are estimated; the first line has flat priors.

Standard deviations have half-t priors (3 degrees of freedom; Gelman 2006, "Prior distributions for
variance parameters in hierarchical models"), scaled by that of the gains; the one between runs is
lognormal about 0.7 points, times or divided by 1.65, and where runs were repeated their scatter
says the rest. With one seed it is therefore assumed, not measured. Given the standard deviations
all else is normal, and integrated exactly; over them the posterior is sampled by importance, from a
t about its mode.

Knows: gains as numbers, names of cells, targets and ingredients. Does not know: panels, seeds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mixtune.tasks.metrics import FloatArray, IntArray

INTERCEPT = "one other ingredient"
SLOPE = "each further ingredient"

RUN_SD = 0.7
"""Points between runs of a cell that are expected where runs were not repeated: the median of the
committed studies (bench/results)."""
RUN_SPREAD = 0.5
"""Standard deviation of the prior of its logarithm."""
SMALLEST_SCALE = 1.0
"""Points that gains are expected to differ by, at least, where noise explains all that is seen."""
T_DF = 3.0
PROPOSALS = 256
DRAWS = 2048
"""Draws of the posterior."""
_NEGLIGIBLE = 1e-4
"""Points² of item variance below which a gain would count as known."""


@dataclass(frozen=True, slots=True)
class CellGain:
    """A cell's gain over a target's single task in points, means over the seeds of each.

    `added`: its ingredients beside the target. `item_variance`: of its own, in points².
    """

    target: str
    cell: str
    added: tuple[str, ...]
    groups: tuple[str, ...]
    value: float
    item_variance: float
    seeds: int


@dataclass(frozen=True, slots=True)
class Reference:
    """A target's single task: item variance that all gains on it share in points², and seeds."""

    item_variance: float
    seeds: int


class RunScatter(NamedTuple):
    """Pooled variance between runs of a cell in points², its degrees of freedom, items' part."""

    variance: float
    df: int
    item_part: float


class Kind(NamedTuple):
    """A kind of random effect, and the scale of its prior as a part of the gains' own."""

    name: str
    scale: float


TARGET = Kind("target", 1.0)
TARGET_SLOPE = Kind("target's slope", 0.1)
TARGET_GROUP = Kind("target's group", 1.0)
INGREDIENT = Kind("ingredient", 1 / 8)
INTERACTION = Kind("ingredient × target", 1 / 8)
CELL = Kind("cell", 1 / 8)
RESIDUAL = Kind("cell × target", 1 / 30)


@dataclass(frozen=True)
class Posterior:
    """Draws of the fixed terms [draws, terms] and of the gains [draws, gains], in points.

    `repeated`: some run was, so that their scatter is measured. `left_out`: terms that added
    imply.
    """

    repeated: bool
    gains: tuple[CellGain, ...]
    terms: tuple[str, ...]
    left_out: tuple[str, ...]
    term_draws: FloatArray
    gain_draws: FloatArray

    def on(self, target: str) -> tuple[list[CellGain], FloatArray]:
        """The gains on a target, and their draws."""
        places = [i for i, gain in enumerate(self.gains) if gain.target == target]
        return [self.gains[i] for i in places], self.gain_draws[:, places]


def posterior(
    gains: Sequence[CellGain],
    references: Mapping[str, Reference],
    scatter: RunScatter | None,
    seed: int,
) -> Posterior:
    """Sample the model.

    Args:
        gains: of each cell and target; at least one.
        references: by target.
        scatter: None where no run was repeated.
        seed: of the draws.
    """
    model = _Model(tuple(gains), references, scatter)
    rng = np.random.default_rng(seed)
    points, weights = _sampled_sds(model, rng)
    # Systematic resampling: a proposal is used as often as its weight says, give or take one.
    places = (np.arange(DRAWS) + rng.random()) / DRAWS
    chosen = np.minimum(np.searchsorted(np.cumsum(weights), places), len(weights) - 1)
    terms, gain_draws = [], []
    for index, count in zip(*np.unique(chosen, return_counts=True), strict=True):
        own = model.conditional(points[index]).draws(int(count), rng)
        terms.append(own.terms)
        gain_draws.append(own.gains)
    return Posterior(
        scatter is not None,
        model.gains,
        tuple(model.fixed),
        tuple(model.left_out),
        np.concatenate(terms),
        np.concatenate(gain_draws),
    )


# ---- the model -----------------------------------------------------------------------------------


class _Effects(NamedTuple):
    """Columns of one kind of random effect [gains, effects]."""

    kind: Kind
    columns: FloatArray


class _Model:
    """Design matrices and priors; the parameters are logarithms of standard deviations."""

    def __init__(
        self,
        gains: tuple[CellGain, ...],
        references: Mapping[str, Reference],
        scatter: RunScatter | None,
    ) -> None:
        self.gains, self._scatter = gains, scatter
        self.y = np.array([gain.value for gain in gains])
        targets = sorted({gain.target for gain in gains})
        self.at_target = _indicators([gain.target for gain in gains], targets)
        self.fixed, self.left_out = _fixed(gains)
        self.effects = list(self._random_effects())
        cells = sorted({gain.cell for gain in gains})
        self.cell: IntArray = np.array([cells.index(gain.cell) for gain in gains])
        self.cells = len(cells)
        self.kinds = [effects.kind for effects in self.effects] + [CELL, RESIDUAL]
        self.item_variance = np.array([max(g.item_variance, _NEGLIGIBLE) for g in gains])
        self.seeds = np.array([float(gain.seeds) for gain in gains])
        shared = [references[target] for target in targets]
        self.shared_variance = np.array([max(r.item_variance, _NEGLIGIBLE) for r in shared])
        self.shared_seeds = np.array([float(r.seeds) for r in shared])
        self.scales = np.array([kind.scale * self._scale for kind in self.kinds])

    @property
    def _scale(self) -> float:
        """Standard deviation of the gains beyond their noise, in points."""
        shared = self.shared_variance + RUN_SD**2 / self.shared_seeds
        noise = self.item_variance + RUN_SD**2 / self.seeds + self.at_target @ shared
        beyond = float(self.y.var() - noise.mean())
        return float(max(beyond, SMALLEST_SCALE**2) ** 0.5)

    def _random_effects(self) -> Iterator[_Effects]:
        """Effects that several gains share, but for those of cells."""
        names = sorted({name for gain in self.gains for name in gain.added})
        shares = np.array([[(n in g.added) / len(g.added) for n in names] for g in self.gains])
        yield _Effects(TARGET, self.at_target)
        if SLOPE in self.fixed:
            yield _Effects(TARGET_SLOPE, self.at_target * self.fixed[SLOPE][:, None])
        for name, column in self.fixed.items():
            if name not in (INTERCEPT, SLOPE):
                yield _Effects(TARGET_GROUP, self.at_target * column[:, None])
        if len(names) > 1:
            yield _Effects(INGREDIENT, shares)
            crossed = np.einsum("gt,gi->gti", self.at_target, shares).reshape(len(shares), -1)
            yield _Effects(INTERACTION, crossed[:, crossed.any(0)])

    @cached_property
    def design(self) -> FloatArray:
        """Fixed terms, random effects but for cells, and the noise of the single tasks."""
        random = [effects.columns for effects in self.effects]
        return np.concatenate([np.stack(list(self.fixed.values()), 1), *random, self.at_target], 1)

    @cached_property
    def _kind_of(self) -> IntArray:
        """For each random effect of the design the place of its kind."""
        sizes = [effects.columns.shape[1] for effects in self.effects]
        return np.repeat(np.arange(len(sizes)), sizes)

    def log_posterior(self, logs: FloatArray) -> float:
        """Of logarithms of standard deviations, those of the kinds and that between runs."""
        if np.abs(logs).max() > 12:
            return -np.inf
        try:
            conditional = self.conditional(logs)
        except np.linalg.LinAlgError:  # variances too far apart for the arithmetic
            return -np.inf
        sds, run = np.exp(logs[:-1]), float(logs[-1])
        # Half-t densities and a lognormal one; with the Jacobian of the logarithm.
        prior = -(T_DF + 1) / 2 * np.log1p((sds / self.scales) ** 2 / T_DF).sum() + logs[:-1].sum()
        prior -= 0.5 * ((run - np.log(RUN_SD)) / RUN_SPREAD) ** 2
        if self._scatter is not None:
            variance, df, item_part = self._scatter
            mean = np.exp(2 * run) + item_part
            prior -= 0.5 * df * (np.log(mean) + variance / mean)
        return float(conditional.log_likelihood + prior)

    def conditional(self, logs: FloatArray) -> "_Conditional":
        """All effects given the standard deviations.

        Raises:
            numpy.linalg.LinAlgError: the equations cannot be solved.
        """
        *variances, cell, residual, run = np.exp(2 * logs)
        noise = self.item_variance + run / self.seeds
        shared = self.shared_variance + run / self.shared_seeds
        effects = np.concatenate([np.array(variances)[self._kind_of], shared])
        return _Conditional(self, effects, _Variances(cell, residual, noise))


class _Variances(NamedTuple):
    """Of cells, of cells × targets, and of each gain's own noise [gains]."""

    cell: float
    residual: float
    noise: FloatArray


class _Draws(NamedTuple):
    terms: FloatArray
    gains: FloatArray


class _Conditional:
    """Normal posterior of all effects, by Henderson's equations with the cells' eliminated."""

    def __init__(self, model: _Model, effects: FloatArray, variances: _Variances) -> None:
        self._model, self._variances = model, variances
        design, y, fixed = model.design, model.y, len(model.fixed)
        total = variances.residual + variances.noise
        weighted = design / total[:, None]
        equations = design.T @ weighted
        places = np.arange(fixed, design.shape[1])
        equations[places, places] += 1 / effects
        # A cell's equation holds no other cell, so that a division eliminates it.
        self._crossed = np.zeros((model.cells, design.shape[1]))
        np.add.at(self._crossed, model.cell, weighted)
        self._cell_precision = np.bincount(model.cell, 1 / total, model.cells) + 1 / variances.cell
        self._cell_sums = np.bincount(model.cell, y / total, model.cells)
        divided = self._crossed / self._cell_precision[:, None]
        right = weighted.T @ y - divided.T @ self._cell_sums
        self._root = np.linalg.cholesky(equations - self._crossed.T @ divided)
        self.mean = np.linalg.solve(self._root.T, np.linalg.solve(self._root, right))
        log_determinant = (
            np.log(total).sum()
            + np.log(effects).sum()
            + model.cells * np.log(variances.cell)
            + np.log(self._cell_precision).sum()
            + 2 * np.log(np.diag(self._root)).sum()
        )
        squares = (y**2 / total).sum() - (self._cell_sums**2 / self._cell_precision).sum()
        self.log_likelihood = -0.5 * float(log_determinant + squares - right @ self.mean)

    def draws(self, count: int, rng: np.random.Generator) -> _Draws:
        """Fixed terms and gains: effects first, then cells given them, then what is left."""
        model, (_, residual, noise) = self._model, self._variances
        normal = rng.standard_normal((len(self.mean), count))
        effects = self.mean + np.linalg.solve(self._root.T, normal).T
        means = (self._cell_sums - effects @ self._crossed.T) / self._cell_precision
        cells = means + rng.standard_normal(means.shape) / np.sqrt(self._cell_precision)
        fitted = effects @ model.design.T + cells[:, model.cell]
        share = residual / (residual + noise)
        own = share * (model.y - fitted)
        own += rng.standard_normal(own.shape) * np.sqrt(residual * (1 - share))
        single = effects[:, -model.at_target.shape[1] :] @ model.at_target.T
        return _Draws(effects[:, : len(model.fixed)], fitted - single + own)


def _indicators(values: Sequence[str], levels: Sequence[str]) -> FloatArray:
    return np.array([[float(value == level) for level in levels] for value in values])


def _fixed(gains: Sequence[CellGain]) -> tuple[dict[str, FloatArray], list[str]]:
    """Independent columns of the fixed terms by name, and the terms that depend on added."""
    groups = sorted({group for gain in gains for group in gain.groups})
    terms = {SLOPE: np.array([len(gain.added) - 1.0 for gain in gains])}
    terms |= {f"has {g}": np.array([float(g in gain.groups) for gain in gains]) for g in groups}
    columns: dict[str, FloatArray] = {INTERCEPT: np.ones(len(gains))}
    left_out = []
    for name, column in terms.items():
        trial = np.stack([*columns.values(), column], 1)
        if np.linalg.matrix_rank(trial) == trial.shape[1]:
            columns[name] = column
        else:
            left_out.append(name)
    return columns, left_out


# ---- standard deviations -------------------------------------------------------------------------

_STEP = 0.1
"""Of the second derivatives, in logarithms."""
_FLATTEST = 0.3
"""Smallest curvature of the proposal: a variance that may well be zero has nearly none."""
_PROPOSAL_DF = 5.0


def _sampled_sds(
    model: _Model, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Proposals [proposals, parameters] and their weights, which sum to one."""
    mode = _mode(model)
    values, vectors = np.linalg.eigh(_curvature(model, mode))
    sds = 1.3 / np.sqrt(np.maximum(values, _FLATTEST))
    size = len(mode)
    normal = rng.standard_normal((PROPOSALS, size))
    chi = rng.chisquare(_PROPOSAL_DF, PROPOSALS) / _PROPOSAL_DF
    points = mode + (normal / np.sqrt(chi)[:, None] * sds) @ vectors.T
    distance = (normal**2).sum(1) / chi
    proposed = -0.5 * (_PROPOSAL_DF + size) * np.log1p(distance / _PROPOSAL_DF)
    logs = np.array([model.log_posterior(point) for point in points]) - proposed
    weights = np.exp(logs - logs.max())
    return points, weights / weights.sum()


def _mode(model: _Model) -> FloatArray:
    from scipy.optimize import minimize  # half a second, which other commands would wait for

    start = np.log(np.append(model.scales / 2, RUN_SD))
    result = minimize(
        lambda logs: -model.log_posterior(logs),
        start,
        method="L-BFGS-B",
        bounds=[(-8.0, 6.0)] * len(start),
    )
    mode: FloatArray = result.x
    return mode


def _curvature(model: _Model, mode: FloatArray) -> FloatArray:
    """Negative second derivatives of the log posterior, by central differences."""
    size = len(mode)
    steps = np.eye(size) * _STEP
    middle = model.log_posterior(mode)
    above = [model.log_posterior(mode + step) for step in steps]
    below = [model.log_posterior(mode - step) for step in steps]
    curvature = np.zeros((size, size))
    for i in range(size):
        curvature[i, i] = 2 * middle - above[i] - below[i]
        for j in range(i):
            both = model.log_posterior(mode + steps[i] + steps[j])
            neither = model.log_posterior(mode - steps[i] - steps[j])
            mixed = both + neither + 2 * middle - above[i] - above[j] - below[i] - below[j]
            curvature[i, j] = curvature[j, i] = -mixed / 2
    return curvature / _STEP**2
