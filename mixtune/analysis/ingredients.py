"""What an ingredient does to a target: added to it, left out of all, together with another.

Knows: cells by their ingredients, seeds. Does not know: amounts, budgets' numbers, how a row is
shown.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from mixtune.analysis.effects import adjusted
from mixtune.analysis.intervals import Arm, Part, contrast, pooled
from mixtune.analysis.measures import BASE, Measured, estimate
from mixtune.records import Estimate
from mixtune.study.design import is_plain, members, title
from mixtune.tasks.metrics import FloatArray

EFFECT = "ingredient-effect"
SYNERGY = "synergy"
LEFT_OUT = "leave-one-out"
FORM, ABILITY = "form-gain", "ability-gain"


def ingredient_effects(found: Sequence[Measured], budget: str) -> list[Estimate]:
    """The transfer matrix, what leaving out does, and synergies, each on the seeds that all have.

    "ingredient-effect": target and ingredient together minus the target alone under the same
    budget, so with fewer rows of the target. "leave-one-out": all minus all without the
    ingredient. "synergy": a pair minus the mean of its two single cells; under equal steps that is
    mostly dilution, so the method names the budget. `adjusted`: Benjamini and Hochberg.

    Args:
        found: what is measured.
        budget: the study's budget, in words.
    """
    rows = [row for measured in found for row in _effects(measured, budget)]
    return adjusted(rows)


def _effects(measured: Measured, budget: str) -> Iterator[Estimate]:
    target = measured.panel.task
    plain = {name: seeds for name, seeds in measured.cells().items() if is_plain(name)}
    named = sorted({part for name in plain for part in members(name)})
    whole = title(named)
    for one in named:
        pair = title(sorted((one, target)))
        if one != target and {pair, target} <= set(plain):
            yield from _row(measured, (EFFECT, one, target), [(1, pair), (-1, target)], budget)
        rest = title([name for name in named if name != one])
        if len(named) > 2 and {whole, rest} <= set(plain):
            yield from _row(measured, (LEFT_OUT, one, rest), [(1, whole), (-1, rest)], budget)
    for name in plain:
        parts = members(name)
        if len(parts) == 2 and set(parts) <= set(plain):
            halves = [(-0.5, part) for part in parts]
            yield from _row(measured, (SYNERGY, name, ""), [(1, name), *halves], budget)


def _row(
    measured: Measured,
    what: tuple[str, str, str],
    parts: Sequence[tuple[float, str]],
    budget: str,
) -> list[Estimate]:
    arms = measured.weighted(parts)
    if not arms:
        return []
    value, ends = contrast(arms, measured.panel.clusters)
    row = estimate(measured, what, arms[0][1], value, ends)
    return [replace(row, method=f"{row.method}; {budget}")]


def form_and_ability(found: Sequence[Measured]) -> list[Estimate]:
    """Every cell's gain over the base in two parts: "ability-gain" and "form-gain".

    Ability is the gain in constrained answers, where form is given; form is what the gain in strict
    answers is beyond that. Both forms are of the same items and resamples, so the parts are paired.
    """
    by_key = {(m.panel.task, m.panel.split, m.metric.name, m.panel.form): m for m in found}
    rows: list[Estimate] = []
    for (task, split, metric, form), strict in by_key.items():
        constrained = by_key.get((task, split, metric, "constrained"))
        if form == "strict" and constrained is not None:
            rows += _split(strict, constrained)
    return rows


def _split(strict: Measured, constrained: Measured) -> Iterator[Estimate]:
    base = strict.named(BASE)
    if None not in base or base[None] not in constrained.values:
        return
    fixed = base[None]
    for name, by_seed in strict.cells().items():
        systems = [s for s in by_seed.values() if s in constrained.values]
        if not systems:
            continue
        clusters = strict.panel.clusters
        own: list[Part] = [(1, constrained.arm(systems)), (-1, constrained.arm([fixed]))]
        value, ends = contrast(own, clusters)
        yield estimate(constrained, (ABILITY, name, BASE), own[0][1], value, ends)
        apart: list[Part] = [
            (1, _apart(strict, constrained, systems)),
            (-1, _apart(strict, constrained, [fixed])),
        ]
        value, ends = contrast(apart, clusters)
        yield estimate(strict, (FORM, name, BASE), apart[0][1], value, ends)


def _apart(strict: Measured, constrained: Measured, systems: Sequence[str]) -> Arm:
    """Strict minus constrained of the same systems, as an arm of its own."""
    one, other = strict.arm(systems), constrained.arm(systems)
    spread = None if one.spread is None else pooled(_by_cell(strict, constrained))
    return Arm(one.values - other.values, one.draws - other.draws, spread)


def _by_cell(strict: Measured, constrained: Measured) -> list[FloatArray]:
    return [
        np.array([strict.values[s] - constrained.values[s] for s in seeds.values()])
        for seeds in strict.cells().values()
        if all(s in constrained.values for s in seeds.values())
    ]
