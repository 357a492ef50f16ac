"""The cocktails that a study trains: named families over its ingredients, and explicit lists.

Knows: the families, titles of cells. Does not know: amounts, budgets, seeds, data.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import combinations

from mixtune.errors import SpecError
from mixtune.study.spec import Design

Cocktail = tuple[str, ...]


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
