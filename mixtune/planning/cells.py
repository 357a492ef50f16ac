"""Study and sizes of pools → cells: which cocktails are trained, in what amounts, for how long.

Knows: designs, doses, budgets, the controls that belong to them. Does not know: rows, tokens,
seeds, models.

    families, by hand        every cocktail, under the study's budget
    levels                   base mix + an addition in growing shares
    equal-exposure           each single task on as many of its rows as a cocktail saw of them
    more_epochs              each single task for a multiple of the steps
    claims.tune_lr                each single task at other learning rates, so that it is tuned too

A smaller amount of an ingredient is a prefix of a larger one (mixing.py), so a single task trained
on n examples is trained on exactly the n that it contributed to a cocktail, in their order.

The runs that a claim takes: what was chosen and what it is held against, as cells.

Knows: which cells a claim needs. Does not know: how a cell was chosen, what is claimed.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from mixtune.errors import SpecError
from mixtune.planning.mixing import portions, wanted_shares
from mixtune.records import Selection
from mixtune.study.design import cocktails, title
from mixtune.study.spec import Course, Ingredient, Level, Study, exact

Amounts = Mapping[str, Ingredient]

PUBLISHED_FEW = 3
"""Up to so many ingredients the original study trains for one epoch more, without a warm-up."""
PUBLISHED_EPOCHS = 2
PUBLISHED_WARMUP = 10
"""Steps of warm-up where there are more ingredients."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cocktail with amounts and a course; `note` tells it from others of the same cocktail."""

    cocktail: tuple[str, ...]
    amounts: Amounts
    course: Course
    note: str = ""

    @property
    def name(self) -> str:
        """What tables call it."""
        return title(self.cocktail, self.note)


def cells(
    study: Study, available: Mapping[str, int], costs: Mapping[str, Fraction] | None = None
) -> list[Cell]:
    """Every cell of a study, each name once: cocktails, doses, then controls.

    Args:
        study: its design, ingredients and budget.
        available: ingredient → rows of its pool.
        costs: what a row of each ingredient weighs, where shares are not of rows.

    Raises:
        SpecError: an amount or budget that pools cannot give.
    """
    found: dict[str, Cell] = {}
    for cell in _treatments(study, available):
        found.setdefault(cell.name, cell)
    for cell in list(_controls(study, list(found.values()), available, costs)):
        found.setdefault(cell.name, cell)
    return list(found.values())


def budget_parts(course: Course) -> dict[str, object]:
    """What of a course is in a run's id; `kind` has stood there from when there was one only."""
    parts: dict[str, object] = {
        "kind": "equal-steps",
        "steps": course.steps,
        "examples_per_step": course.examples_per_step,
    }
    if course.examples != course.steps * course.examples_per_step:
        parts["examples"] = course.examples
    return parts


def _treatments(study: Study, available: Mapping[str, int]) -> Iterator[Cell]:
    for cocktail in cocktails(study.design, sorted(study.ingredients)):
        amounts = {name: study.ingredients[name] for name in cocktail}
        if study.budget.kind == "as-published":
            yield _published(cocktail, amounts, study, available)
        else:
            yield Cell(cocktail, amounts, _course(study))
    for level in study.design.levels:
        yield from _doses(level, study, available)


def _course(study: Study, times: int = 1) -> Course:
    return Course(study.budget.examples * times, study.budget.examples_per_step)


# ---- as published --------------------------------------------------------------------------------


def _published(
    cocktail: tuple[str, ...], amounts: Amounts, study: Study, available: Mapping[str, int]
) -> Cell:
    """All rows of a cocktail, 3 or 2 times: rows asked for are a cap, as in the original."""
    few = len(cocktail) <= PUBLISHED_FEW
    epochs = PUBLISHED_EPOCHS + few
    rows = {name: min(amounts[name].rows or available[name], available[name]) for name in cocktail}
    whole = {
        name: Ingredient(rows=rows[name], repeat=epochs, when_exhausted="error")
        for name in cocktail
    }
    course = Course(
        epochs * sum(rows.values()),
        study.budget.examples_per_step,
        0 if few else PUBLISHED_WARMUP,
    )
    return Cell(cocktail, whole, course)


# ---- doses ---------------------------------------------------------------------------------------


def _doses(level: Level, study: Study, available: Mapping[str, int]) -> Iterator[Cell]:
    """No dose is the plain cocktail, the same run for every series that begins with it."""
    base = _parts(level.to, study, available)
    added = _parts(level.add, study, available)
    for share in level.shares:
        if not share:
            plain = {name: study.ingredients[name] for name in base}
            yield Cell(tuple(sorted(plain)), plain, _course(study))
            continue
        dose = exact(share)
        parts = {name: part * (1 - dose) for name, part in base.items()}
        parts |= {name: part * dose for name, part in added.items()}
        amounts = {
            name: study.ingredients[name].model_copy(
                update={"share": float(part), "repeat": None, "unit": "rows"}
            )
            for name, part in parts.items()
        }
        note = f"{level.name} {100 * share:g}%"
        yield Cell(tuple(sorted(amounts)), amounts, _course(study), note)


def _parts(names: Sequence[str], study: Study, available: Mapping[str, int]) -> dict[str, Fraction]:
    """Proportions of ingredients among themselves, by their shares or their rows."""
    amounts = {name: study.ingredients[name] for name in names}
    asked = {name: one.rows or available[name] for name, one in amounts.items()}
    found = wanted_shares(amounts, asked, {})
    total = sum(found.values(), Fraction(0))
    return {name: part / total for name, part in found.items()}


# ---- controls ------------------------------------------------------------------------------------


def _controls(
    study: Study,
    treated: Sequence[Cell],
    available: Mapping[str, int],
    costs: Mapping[str, Fraction] | None,
) -> Iterator[Cell]:
    """Single tasks beside the cocktails; of tasks only, since nothing else has a target."""
    targets = [name for name in study.tasks if name in study.ingredients]
    if study.budget.kind == "equal-exposure":
        for cell in treated:
            counts = portions(available, cell.amounts, cell.course.examples, costs)
            for name in targets:
                if name in counts and len(counts) > 1:
                    yield exposed(study, name, counts[name].got)
    if study.budget.more_epochs is not None:
        for name in targets:
            yield exposed(study, name, study.budget.examples * study.budget.more_epochs)
    for lr in study.claims.tune_lr:
        for name in targets:
            yield from _at_rate(name, lr, treated)


def _at_rate(name: str, lr: float, treated: Sequence[Cell]) -> Iterator[Cell]:
    """A single task that is trained, at another learning rate."""
    for cell in treated:
        if cell.name == name:
            yield replace(cell, course=replace(cell.course, lr=lr), note=f"lr {lr:g}")


def exposed(study: Study, name: str, examples: int) -> Cell:
    """The single task trained on so many examples: at equal exposure, or for longer."""
    amount = study.ingredients[name].model_copy(update={"share": None, "unit": None})
    course = Course(examples, study.budget.examples_per_step)
    return Cell((name,), {name: amount}, course, exposure(examples))


def exposure(examples: int) -> str:
    """What tells a single task trained on so many examples from the step-matched one."""
    return f"{examples} examples"


def claimed_cells(
    study: Study, selection: Selection, planned: Mapping[str, Cell]
) -> dict[str, Cell]:
    """Cells by name: of each target the chosen one, then those that it is held against.

    Raises:
        SpecError: the study no longer has a cell that was chosen, or has a seed of the claims.
    """
    taken = sorted({*study.seeds} & {*selection.fresh, *selection.spent})
    if taken:
        raise SpecError(
            "seeds: these are kept for claims, and nothing may be chosen by them",
            found=taken,
            remedy="give the study other seeds",
        )
    found: dict[str, Cell] = {}
    for choice in selection.choices:
        known = dict(planned)
        if choice.target in selection.exposed:
            control = exposed(study, choice.target, selection.exposed[choice.target])
            known.setdefault(control.name, control)
        for name in (choice.cocktail, *selection.against[choice.target]):
            if name not in known:
                raise SpecError(
                    "selection.json: the study no longer has a cell that was chosen",
                    found=name,
                    remedy="give back the design that it was chosen from, or choose again: mixtune "
                    "confirm --again",
                )
            found.setdefault(name, known[name])
    return found
