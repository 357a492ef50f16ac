"""Effects of an ingredient on a target: added to it, left out of all, together with another.

Knows: cells by their ingredients, seeds. Does not know: amounts, budgets' numbers, how a row is
shown.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from mixtune.analysis.effects import adjusted
from mixtune.analysis.intervals import Arm, Part, contrast, pooled
from mixtune.analysis.measures import BASE, Contrast, Measured, WeightedCell, estimate
from mixtune.records import Estimate
from mixtune.tasks.metrics import FloatArray

EFFECT = "ingredient-effect"
SYNERGY = "synergy"
LEFT_OUT = "leave-one-out"
FORM, ABILITY = "form-gain", "ability-gain"


def ingredient_effects(measured: Sequence[Measured], budget: str) -> list[Estimate]:
    """The transfer matrix, leave-one-out effects and synergies, each on the seeds that all have.

    "ingredient-effect": target and ingredient together minus the target alone under the same
    budget, so with fewer rows of the target. "leave-one-out": all minus all without the
    ingredient. "synergy": a pair minus the mean of its two single cells; under equal steps that is
    mostly dilution, so the method names the budget. `adjusted`: Benjamini and Hochberg.

    Args:
        measured: the panels.
        budget: the study's budget, in words.
    """
    rows = [row for m in measured for row in _effects(m, budget)]
    return adjusted(rows)


def _effects(measured: Measured, budget: str) -> Iterator[Estimate]:
    target = measured.panel.task
    # Ingredients, sorted → the plain cell of them.
    plain = {
        tuple(sorted(measured.info(name).ingredients)): name
        for name in measured.cells()
        if measured.info(name).plain
    }
    ingredients = sorted({part for parts in plain for part in parts})
    single, everything = plain.get((target,)), plain.get(tuple(ingredients))
    for ingredient in ingredients:
        pair = plain.get(tuple(sorted((ingredient, target))))
        if ingredient != target and pair and single:
            terms = [WeightedCell(1, pair), WeightedCell(-1, single)]
            yield from _row(measured, Contrast(EFFECT, ingredient, single), terms, budget)
        rest = plain.get(tuple(name for name in ingredients if name != ingredient))
        if len(ingredients) > 2 and everything and rest:
            terms = [WeightedCell(1, everything), WeightedCell(-1, rest)]
            yield from _row(measured, Contrast(LEFT_OUT, ingredient, rest), terms, budget)
    for parts, name in plain.items():
        halves = [WeightedCell(-0.5, plain[part,]) for part in parts if (part,) in plain]
        if len(parts) == len(halves) == 2:
            terms = [WeightedCell(1, name), *halves]
            yield from _row(measured, Contrast(SYNERGY, name), terms, budget)


def _row(
    measured: Measured, of: Contrast, terms: Sequence[WeightedCell], budget: str
) -> list[Estimate]:
    parts = measured.weighted(terms)
    if not parts:
        return []
    value, ci = contrast(parts, measured.panel.clusters)
    row = estimate(measured, of, parts[0].arm, value, ci)
    return [replace(row, method=f"{row.method}; {budget}")]


def form_and_ability(measured: Sequence[Measured]) -> list[Estimate]:
    """Every cell's gain over the base in two parts: "ability-gain" and "form-gain".

    Ability is the gain in constrained answers, where form is given; form is what the gain in strict
    answers is beyond that. Both forms are of the same items and resamples, so the parts are paired.
    """
    by_key = {(m.panel.task, m.panel.split, m.metric.name, m.panel.form): m for m in measured}
    rows: list[Estimate] = []
    for (task, split, metric, form), strict in by_key.items():
        constrained = by_key.get((task, split, metric, "constrained"))
        if form == "strict" and constrained is not None:
            rows += _split(strict, constrained)
    return rows


def _split(strict: Measured, constrained: Measured) -> Iterator[Estimate]:
    bases = strict.named(BASE)
    if None not in bases or bases[None] not in constrained.values:
        return
    base, clusters = [bases[None]], strict.panel.clusters
    for name, by_seed in strict.cells().items():
        systems = [s for s in by_seed.values() if s in constrained.values]
        if not systems:
            continue
        ability = [Part(1, constrained.arm(systems)), Part(-1, constrained.arm(base))]
        value, ci = contrast(ability, clusters)
        yield estimate(constrained, Contrast(ABILITY, name, BASE), ability[0].arm, value, ci)
        form = [
            Part(1, _form_arm(strict, constrained, systems)),
            Part(-1, _form_arm(strict, constrained, base)),
        ]
        value, ci = contrast(form, clusters)
        yield estimate(strict, Contrast(FORM, name, BASE), form[0].arm, value, ci)


def _form_arm(strict: Measured, constrained: Measured, systems: Sequence[str]) -> Arm:
    """Strict minus constrained of the same systems, as one arm."""
    arm, against = strict.arm(systems), constrained.arm(systems)
    spread = None if arm.spread is None else pooled(_by_cell(strict, constrained))
    return Arm(arm.values - against.values, arm.draws - against.draws, spread)


def _by_cell(strict: Measured, constrained: Measured) -> list[FloatArray]:
    return [
        np.array([strict.values[s] - constrained.values[s] for s in seeds.values()])
        for seeds in strict.cells().values()
        if all(s in constrained.values for s in seeds.values())
    ]
