"""The runs that a claim takes: what was chosen and what it is held against, as cells.

Knows: which cells a claim needs. Does not know: how a cell was chosen, what is claimed.
"""

from collections.abc import Mapping

from mixtune.errors import SpecError
from mixtune.planning.cells import Cell, exposed
from mixtune.records import Selection
from mixtune.spec import Study


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
