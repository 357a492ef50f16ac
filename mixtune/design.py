"""Which cocktails a study trains: named families over its ingredients, and any listed by hand.

Knows: what each family is. Does not know: amounts, budgets, seeds, what an ingredient holds.
"""

from collections.abc import Callable, Sequence
from itertools import combinations

from mixtune.errors import SpecError, did_you_mean
from mixtune.spec import Design

Cocktail = tuple[str, ...]


def cocktails(design: Design, ingredients: Sequence[str]) -> list[Cocktail]:
    """The distinct cocktails of a design, each a tuple of ingredient names sorted by name.

    Order: singles, pairs, leave-one-out, all, explicit; inside a family by name; a cocktail that
    two families give stands where it came first. The order of `ingredients` does not matter.
    Names are compared whole, so that leaving out "a" never leaves out "a-long".

    Raises:
        SpecError: no ingredient, a repeated name, an explicit name that is no ingredient, or a
            design that gives no cocktail at all.
    """
    names = _checked(ingredients)
    found: dict[Cocktail, None] = {}
    for family in _families(design):
        found.update(dict.fromkeys(_FAMILIES[family](names)))
    for listed in design.explicit:
        found[_explicit(listed, names)] = None
    if not found:
        raise SpecError(
            "the design gives no cocktail",
            found=f"{', '.join(design.families)} over {len(names)} ingredient(s)",
            wanted="at least one cocktail",
            remedy="add ingredients, the family singles, or an explicit cocktail",
        )
    return list(found)


def _singles(names: Cocktail) -> list[Cocktail]:
    return [(name,) for name in names]


def _pairs(names: Cocktail) -> list[Cocktail]:
    return list(combinations(names, 2))


def _leave_one_out(names: Cocktail) -> list[Cocktail]:
    """Everything but one; nothing for a lone ingredient, since an empty cocktail trains nothing."""
    rests = (tuple(kept for kept in names if kept != left_out) for left_out in names)
    return [rest for rest in rests if rest]


def _all(names: Cocktail) -> list[Cocktail]:
    return [names]


_FAMILIES: dict[str, Callable[[Cocktail], list[Cocktail]]] = {
    "singles": _singles,
    "pairs": _pairs,
    "leave-one-out": _leave_one_out,
    "all": _all,
}
"""In the order in which cocktails are listed, whatever order a study names the families in."""


def _families(design: Design) -> list[str]:
    """The families asked for, `incremental` spelled out as the four."""
    return [name for name in _FAMILIES if {name, "incremental"} & set(design.families)]


def _checked(ingredients: Sequence[str]) -> Cocktail:
    names = tuple(sorted(set(ingredients)))
    if not names or len(names) != len(ingredients):
        raise SpecError(
            "ingredients must be distinct names, at least one",
            found=list(ingredients),
            remedy="name each ingredient once",
        )
    return names


def _explicit(listed: Sequence[str], names: Cocktail) -> Cocktail:
    for name in listed:
        if name not in names:
            raise SpecError(
                f"the explicit cocktail {list(listed)} names no ingredient of the study",
                found=name,
                wanted=did_you_mean(name, names),
                remedy="mend the name or add it under ingredients",
            )
    if not listed or len(set(listed)) != len(listed):
        raise SpecError(
            "an explicit cocktail is empty or names an ingredient twice",
            found=list(listed),
            remedy="list each ingredient once; set amounts with rows:",
        )
    return tuple(sorted(listed))
