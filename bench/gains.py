"""Simulated gains of cells on targets, for the model of all of them (analysis.hierarchy).

Nine ingredients in the incremental design: singles, pairs, all but one, all; the first of them are
the targets, the last is the one dataset of a group. What is measured is the true gain plus noise of
runs and of items, part of which a target's gains share through its single task.

Knows: how gains are made up, what is counted. Does not know: how the model is fitted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from mixtune.analysis.hierarchy import CellGain, Posterior, Reference, RunScatter, posterior
from mixtune.tasks.metrics import FloatArray

Rng = np.random.Generator
INGREDIENTS = tuple("abcdefghi")
GROUP = "general"
MEMBER = INGREDIENTS[-1]
RUN_SD = 0.6
"""Points between runs of a cell."""
OWN_ITEMS, SHARED_ITEMS = 0.57, 0.57
"""Points² of items on 970 of them, where 11 % of answers differ between two cells."""
BINS = 10
"""Of stated chances of being best."""


@dataclass(frozen=True)
class Truth:
    """Standard deviations in points of what the true gains are made of.

    `group`: of the group's effect by target; `main` and `transfer`: of an ingredient's, the same on
    all targets, and on each. A cell has the mean of those of its other ingredients.
    """

    target: float = 0.0
    slope: float = 0.0
    cell: float = 0.0
    group: float = 0.0
    main: float = 0.0
    transfer: float = 0.0


TRUTHS = {
    "no effect": Truth(),
    "targets and cells differ": Truth(target=1.0, slope=0.1, cell=0.3),
    "the group's effect differs by target": Truth(group=1.0),
    "ingredients differ": Truth(main=1.0),
    "ingredients differ by target": Truth(transfer=1.0),
    "both": Truth(main=0.7, transfer=0.7),
}


@dataclass(frozen=True)
class Study:
    """Measured gains and the true ones, in the same order."""

    gains: list[CellGain]
    references: dict[str, Reference]
    scatter: RunScatter | None
    true: FloatArray


def cells() -> list[tuple[str, ...]]:
    """Cells of two ingredients and more."""
    rests = [tuple(n for n in INGREDIENTS if n != name) for name in INGREDIENTS]
    return [*combinations(INGREDIENTS, 2), *rests, INGREDIENTS]


def study(rng: Rng, truth: Truth, targets: int, seeds: int) -> Study:
    """One study."""
    main = truth.main * rng.normal(size=len(INGREDIENTS))
    # What the group's term is about is that it does nothing on average.
    main[-1] = 0.0
    cell_effects = truth.cell * rng.normal(size=len(cells()))
    gains, true, squares = [], [], []
    references = {}
    for target in INGREDIENTS[:targets]:
        transfer = main + truth.transfer * rng.normal(size=len(INGREDIENTS))
        level, slope, group = rng.normal(size=3) * (truth.target, truth.slope, truth.group)
        single, square = _runs(rng, seeds)
        squares.append(square)
        single += SHARED_ITEMS**0.5 * rng.normal()
        references[target] = Reference(SHARED_ITEMS, seeds)
        for cell, effect in zip(cells(), cell_effects, strict=True):
            if target not in cell:
                continue
            others = tuple(name for name in cell if name != target)
            own = transfer[[INGREDIENTS.index(name) for name in others]].mean()
            value = level + slope * (len(others) - 1) + group * (MEMBER in others) + effect + own
            runs, square = _runs(rng, seeds)
            squares.append(square)
            seen = value + runs - single + OWN_ITEMS**0.5 * rng.normal()
            groups = (GROUP,) if MEMBER in others else ()
            name = "+".join(cell)
            gains.append(CellGain(target, name, others, groups, float(seen), OWN_ITEMS, seeds))
            true.append(value)
    df = (seeds - 1) * len(squares)
    scatter = RunScatter(sum(squares) / df, df, 0.0) if df else None
    return Study(gains, references, scatter, np.array(true))


def _runs(rng: Rng, seeds: int) -> tuple[float, float]:
    """Mean deviation of some runs, and the sum of squares about it."""
    runs = RUN_SD * rng.normal(size=seeds)
    return float(runs.mean()), float(((runs - runs.mean()) ** 2).sum())


def fitted(truth: Truth, targets: int, seeds: int) -> Callable[[Rng, int], dict[str, float]]:
    """Coverage of the model's intervals, optimism of its best, and its chances of being best."""

    def chunk(rng: Rng, studies: int) -> dict[str, float]:
        sums: dict[str, float] = {}
        for _ in range(studies):
            one = study(rng, truth, targets, seeds)
            draw_seed = int(rng.integers(2**31))
            draws = posterior(one.gains, one.references, one.scatter, draw_seed)
            for name, value in (*_covered(draws, one.true), *_best(draws, one.true)):
                sums[name] = sums.get(name, 0.0) + value
            sums["studies"] = sums.get("studies", 0.0) + 1
        return sums

    return chunk


def _covered(draws: Posterior, true: FloatArray) -> Iterator[tuple[str, float]]:
    for name, values in zip(draws.terms, draws.term_draws.T, strict=True):
        low, high = np.quantile(values, [0.025, 0.975])
        yield f"{name} covered", float(low <= 0 <= high)
        yield f"{name} width", float(high - low)
    low, high = np.quantile(draws.gain_draws, [0.025, 0.975], axis=0)
    yield "gains covered", float(((low <= true) & (true <= high)).mean())


def _best(draws: Posterior, true: FloatArray) -> Iterator[tuple[str, float]]:
    """Means over targets of what is said of the cell with the largest posterior mean."""
    targets = sorted({gain.target for gain in draws.gains})
    for target in targets:
        places = [i for i, gain in enumerate(draws.gains) if gain.target == target]
        own, values = draws.gain_draws[:, places], true[places]
        best = int(own.mean(0).argmax())
        low, high = np.quantile(own[:, best], [0.025, 0.975])
        yield "best covered", float(low <= values[best] <= high) / len(targets)
        yield "optimism", float(own[:, best].mean() - values[best]) / len(targets)
        chances = np.bincount(own.argmax(1), minlength=len(places)) / len(own)
        truly = values == values.max()
        if truly.sum() > 1:  # cells that are equal share the place
            continue
        for chance, right in zip(chances, truly, strict=True):
            bin_ = min(int(chance * BINS), BINS - 1)
            yield f"bin {bin_} cells", 1.0
            yield f"bin {bin_} stated", float(chance)
            yield f"bin {bin_} best", float(right)
