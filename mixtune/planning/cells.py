"""A study and the sizes of its pools → cells: cocktails, amounts and training schedules.

    families, explicit       every cocktail, under the study's budget
    levels                   a base mix plus an addition in growing shares
    equal-exposure           each single task on as many of its rows as a cocktail has
    more_epochs              each single task for a multiple of the steps
    claims.tune_lr           each single task at other learning rates
    claims                   the cells that claims need, from selection.json

A smaller amount of an ingredient is a prefix of a larger one (mixing.py), so a single task trained
on n examples sees exactly the n that it contributed to a cocktail, in their order.

Knows: designs, levels, budgets and their controls. Does not know: rows, tokens, seeds, models.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from mixtune.errors import SpecError
from mixtune.planning.mixing import portions, requested_shares
from mixtune.records import Selection
from mixtune.study.design import cocktails, title
from mixtune.study.spec import Ingredient, Level, RunLength, Study, exact

Amounts = Mapping[str, Ingredient]

PUBLISHED_FEW = 3
"""Cocktails of up to so many ingredients train one epoch more and without warm-up."""
PUBLISHED_EPOCHS = 2
PUBLISHED_WARMUP = 10
"""Warm-up steps of cocktails with more ingredients."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cocktail with amounts and a schedule; `note` distinguishes cells of the same cocktail."""

    cocktail: tuple[str, ...]
    amounts: Amounts
    course: RunLength
    note: str = ""

    @property
    def name(self) -> str:
        """Display name in tables."""
        return title(self.cocktail, self.note)


def cells(
    study: Study, available: Mapping[str, int], costs: Mapping[str, Fraction] | None = None
) -> list[Cell]:
    """All cells of a study, each name once: cocktails, levels, then controls.

    Args:
        study: its design, ingredients and budget.
        available: ingredient → rows of its pool.
        costs: ingredient → mean cost of a row, where shares are not of rows.

    Raises:
        SpecError: an amount or budget that the pools cannot fill.
    """
    by_name: dict[str, Cell] = {}
    for cell in _treatments(study, available):
        by_name.setdefault(cell.name, cell)
    for cell in list(_controls(study, list(by_name.values()), available, costs)):
        by_name.setdefault(cell.name, cell)
    return list(by_name.values())


def budget_parts(course: RunLength) -> dict[str, object]:
    """The schedule as it enters a run's id; `kind` is constant, so that ids stay as they are."""
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
        yield from _level_cells(level, study, available)


def _course(study: Study, times: int = 1) -> RunLength:
    return RunLength(study.budget.examples * times, study.budget.examples_per_step)


# ---- as published --------------------------------------------------------------------------------


def _published(
    cocktail: tuple[str, ...], amounts: Amounts, study: Study, available: Mapping[str, int]
) -> Cell:
    """All rows of a cocktail, 3 or 2 times; requested rows are a cap, as in the original study."""
    few = len(cocktail) <= PUBLISHED_FEW
    epochs = PUBLISHED_EPOCHS + few
    rows = {name: min(amounts[name].rows or available[name], available[name]) for name in cocktail}
    whole = {
        name: Ingredient(rows=rows[name], repeat=epochs, when_exhausted="error")
        for name in cocktail
    }
    course = RunLength(
        epochs * sum(rows.values()),
        study.budget.examples_per_step,
        0 if few else PUBLISHED_WARMUP,
    )
    return Cell(cocktail, whole, course)


# ---- levels --------------------------------------------------------------------------------------


def _level_cells(level: Level, study: Study, available: Mapping[str, int]) -> Iterator[Cell]:
    """Share 0 is the plain base mix: the same run for every series that starts with it."""
    base = _parts(level.to, study, available)
    added = _parts(level.add, study, available)
    for share in level.shares:
        if not share:
            plain = {name: study.ingredients[name] for name in base}
            yield Cell(tuple(sorted(plain)), plain, _course(study))
            continue
        level_share = exact(share)
        parts = {name: part * (1 - level_share) for name, part in base.items()}
        parts |= {name: part * level_share for name, part in added.items()}
        amounts = {
            name: study.ingredients[name].model_copy(
                update={"share": float(part), "repeat": None, "unit": "rows"}
            )
            for name, part in parts.items()
        }
        note = f"{level.name} {100 * share:g}%"
        yield Cell(tuple(sorted(amounts)), amounts, _course(study), note)


def _parts(names: Sequence[str], study: Study, available: Mapping[str, int]) -> dict[str, Fraction]:
    """Proportions of some ingredients among themselves, by their shares or rows."""
    amounts = {name: study.ingredients[name] for name in names}
    sizes = {name: amount.rows or available[name] for name, amount in amounts.items()}
    shares = requested_shares(amounts, sizes, {})
    total = sum(shares.values(), Fraction(0))
    return {name: share / total for name, share in shares.items()}


# ---- controls ------------------------------------------------------------------------------------


def _controls(
    study: Study,
    treated: Sequence[Cell],
    available: Mapping[str, int],
    costs: Mapping[str, Fraction] | None,
) -> Iterator[Cell]:
    """Single-task controls; of tasks only, since other ingredients are no target."""
    targets = [name for name in study.tasks if name in study.ingredients]
    if study.budget.kind == "equal-exposure":
        for cell in treated:
            counts = portions(available, cell.amounts, cell.course.examples, costs)
            for name in targets:
                if name in counts and len(counts) > 1:
                    yield exposed(study, name, counts[name].rows)
    if study.budget.more_epochs is not None:
        for name in targets:
            yield exposed(study, name, study.budget.examples * study.budget.more_epochs)
    for lr in study.claims.tune_lr:
        for name in targets:
            yield from _at_lr(name, lr, treated)


def _at_lr(name: str, lr: float, treated: Sequence[Cell]) -> Iterator[Cell]:
    """A single task of the design at another learning rate."""
    for cell in treated:
        if cell.name == name:
            yield replace(cell, course=replace(cell.course, lr=lr), note=f"lr {lr:g}")


def exposed(study: Study, name: str, examples: int) -> Cell:
    """A single task trained on `examples` examples: at equal exposure, or for longer."""
    amount = study.ingredients[name].model_copy(update={"share": None, "unit": None})
    course = RunLength(examples, study.budget.examples_per_step)
    return Cell((name,), {name: amount}, course, exposure(examples))


def exposure(examples: int) -> str:
    """The note of a single task trained on a number of examples of its own."""
    return f"{examples} examples"


def claimed_cells(
    study: Study, selection: Selection, planned: Mapping[str, Cell]
) -> dict[str, Cell]:
    """Cells of the claims by name: of each target the chosen one, then its comparison arms.

    Raises:
        SpecError: the study no longer has a chosen cell, or uses a seed reserved for claims.
    """
    reserved = sorted({*study.seeds} & {*selection.fresh, *selection.spent})
    if reserved:
        raise SpecError(
            "seeds: these are reserved for claims and may not choose anything",
            found=reserved,
            remedy="use other seeds in the study",
        )
    cells_by_name: dict[str, Cell] = {}
    for choice in selection.choices:
        candidates = dict(planned)
        if choice.target in selection.exposed:
            control = exposed(study, choice.target, selection.exposed[choice.target])
            candidates.setdefault(control.name, control)
        for name in (choice.cocktail, *selection.against[choice.target]):
            if name not in candidates:
                raise SpecError(
                    "selection.json: the study no longer has a chosen cell",
                    found=name,
                    remedy="restore the design that it was chosen from, or choose again: mixtune "
                    "confirm --again",
                )
            cells_by_name.setdefault(name, candidates[name])
    return cells_by_name
