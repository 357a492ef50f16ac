"""A study and the sizes of its pools → cells: cocktails, amounts and training lengths.

A smaller amount of an ingredient is a prefix of a larger one (mixing.py), so a single task trained
on n examples sees exactly the n that it contributed to a cocktail, in their order.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations

from mixtune.errors import SpecError
from mixtune.planning.mixing import portions, requested_shares
from mixtune.records import Selection
from mixtune.study.spec import Design, Ingredient, Level, RunLength, Study, exact

Amounts = Mapping[str, Ingredient]
Cocktail = tuple[str, ...]
Costs = Mapping[str, Fraction]

PUBLISHED_FEW = 3
"""Cocktails of up to so many ingredients train one epoch more and without warm-up."""
PUBLISHED_EPOCHS = 2
PUBLISHED_WARMUP = 10
"""Warm-up steps of cocktails with more ingredients."""


_FAMILIES: dict[str, Callable[[Cocktail], Iterable[Cocktail]]] = {
    "singles": lambda names: combinations(names, 1),
    "pairs": lambda names: combinations(names, 2),
    # Nothing for a lone ingredient, since an empty cocktail trains nothing.
    "leave-one-out": lambda names: [
        rest for n in names if (rest := tuple(m for m in names if m != n))
    ],
    "all": lambda names: [names],
}
"""In the order in which cocktails are listed, whatever order a study names the families in;
`incremental` is the four."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cocktail with amounts and a length; `note` distinguishes cells of the same cocktail."""

    cocktail: Cocktail
    amounts: Amounts
    course: RunLength
    note: str = ""

    @property
    def name(self) -> str:
        """Display name in tables."""
        return title(self.cocktail, self.note)


def cocktails(design: Design, ingredients: Sequence[str]) -> list[Cocktail]:
    """The distinct cocktails of a design, each a tuple of ingredient names sorted by name.

    Order: singles, pairs, leave-one-out, all, explicit; inside a family by name; a cocktail that
    two families give keeps its first position. The order of `ingredients` does not matter.
    Names are compared whole, so that leaving out "a" never leaves out "a-long".

    Raises:
        SpecError: the design gives no cocktail at all.
    """
    names = tuple(sorted(ingredients))
    listed: dict[Cocktail, None] = {}
    for family, members in _FAMILIES.items():
        if {family, "incremental"} & set(design.families):
            listed.update(dict.fromkeys(members(names)))
    for explicit in design.explicit:
        listed[tuple(sorted(explicit))] = None
    if not listed and not design.levels:
        raise SpecError(
            "the design gives no cocktail",
            found=f"{', '.join(design.families)} over {len(names)} ingredient(s)",
            wanted="at least one cocktail",
            remedy="add ingredients, the family singles, or an explicit cocktail",
        )
    return list(listed)


def title(cocktail: Sequence[str], note: str = "") -> str:
    """The title of a cell: its ingredients, and a note if several cells have the same ones."""
    return "+".join(cocktail) + (f" ({note})" if note else "")


def sorted_title(typed: str) -> str:
    """A cocktail as people type it, b+a, with its ingredients in the order of its name."""
    return "+".join(sorted(typed.split("+")))


def cells(study: Study, available: Mapping[str, int], costs: Costs | None = None) -> list[Cell]:
    """All cells of a study, each name once: cocktails, levels, then controls.

    `available`: ingredient → rows of its pool. `costs`: ingredient → mean cost of a row, where
    shares are not of rows.

    Raises:
        SpecError: an amount or budget that the pools cannot fill.
    """
    by_name: dict[str, Cell] = {}
    for cell in _treatments(study, available):
        by_name.setdefault(cell.name, cell)
    for cell in _controls(study, list(by_name.values()), available, costs):
        by_name.setdefault(cell.name, cell)
    return list(by_name.values())


def _treatments(study: Study, available: Mapping[str, int]) -> Iterator[Cell]:
    for cocktail in cocktails(study.design, sorted(study.ingredients)):
        amounts = {name: study.ingredients[name] for name in cocktail}
        if study.budget.kind == "as-published":
            yield _published(cocktail, amounts, study, available)
        else:
            yield Cell(cocktail, amounts, _length(study.budget.examples, study))
    for level in study.design.levels:
        yield from _level_cells(level, study, available)


def _length(examples: int, study: Study, warmup_steps: int | None = None) -> RunLength:
    return RunLength(examples, study.budget.examples_per_step, warmup_steps)


def _published(
    cocktail: Cocktail, amounts: Amounts, study: Study, available: Mapping[str, int]
) -> Cell:
    """All rows of a cocktail, 3 or 2 times; requested rows are a cap, as in the original study."""
    few = len(cocktail) <= PUBLISHED_FEW
    epochs = PUBLISHED_EPOCHS + few
    rows = {name: min(amounts[name].rows or available[name], available[name]) for name in cocktail}
    whole = {
        name: Ingredient(rows=count, repeat=epochs, when_exhausted="error")
        for name, count in rows.items()
    }
    warmup_steps = 0 if few else PUBLISHED_WARMUP
    return Cell(cocktail, whole, _length(epochs * sum(rows.values()), study, warmup_steps))


def _level_cells(level: Level, study: Study, available: Mapping[str, int]) -> Iterator[Cell]:
    """Share 0 is the plain base mix: the same run for every series that starts with it."""
    base = _parts(level.to, study, available)
    added = _parts(level.add, study, available)
    length = _length(study.budget.examples, study)
    for share in level.shares:
        if not share:
            plain = {name: study.ingredients[name] for name in base}
            yield Cell(tuple(sorted(plain)), plain, length)
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
        yield Cell(tuple(sorted(amounts)), amounts, length, note)


def _parts(names: Sequence[str], study: Study, available: Mapping[str, int]) -> dict[str, Fraction]:
    """Proportions of some ingredients among themselves, by their shares or rows."""
    amounts = {name: study.ingredients[name] for name in names}
    sizes = {name: amount.rows or available[name] for name, amount in amounts.items()}
    shares = requested_shares(amounts, sizes, {})
    total = sum(shares.values(), Fraction(0))
    return {name: share / total for name, share in shares.items()}


def _controls(
    study: Study,
    treated: Sequence[Cell],
    available: Mapping[str, int],
    costs: Costs | None,
) -> Iterator[Cell]:
    """Single-task controls; of tasks only, since other ingredients are no target."""
    targets = [name for name in study.tasks if name in study.ingredients]
    if study.budget.kind == "equal-exposure":
        for cell in treated:
            counts = portions(available, cell.amounts, cell.course.examples, costs)
            for name in targets:
                if name in counts and len(counts) > 1:
                    yield _exposed(study, name, counts[name].rows)
    if study.budget.more_epochs is not None:
        for name in targets:
            yield _exposed(study, name, study.budget.examples * study.budget.more_epochs)
    singles = {cell.name: cell for cell in treated}
    for lr in study.claims.tune_lr:
        for name in targets:
            if name in singles:
                course = replace(singles[name].course, lr=lr)
                yield replace(singles[name], course=course, note=f"lr {lr:g}")


def _exposed(study: Study, name: str, examples: int) -> Cell:
    """A single task trained on `examples` examples: at equal exposure, or for longer."""
    amount = study.ingredients[name].model_copy(update={"share": None, "unit": None})
    return Cell((name,), {name: amount}, _length(examples, study), f"{examples} examples")


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
            control = _exposed(study, choice.target, selection.exposed[choice.target])
            candidates.setdefault(control.name, control)
        for name in (choice.cocktail, *selection.against[choice.target]):
            if name not in candidates:
                raise SpecError(
                    "selection.json: the study no longer has a chosen cell",
                    found=name,
                    remedy="restore its design, or choose again: mixtune confirm --again",
                )
            cells_by_name.setdefault(name, candidates[name])
    return cells_by_name
