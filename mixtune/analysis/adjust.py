"""p-values of several comparisons, adjusted for their number.

Knows: p-values. Does not know: what was compared.
"""

from collections.abc import Sequence


def holm(found: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values: below x for any true null with a chance of at most x (Holm 1979).

    None stays None and still counts as a comparison that was made.
    """
    order = sorted((p, place) for place, p in enumerate(found) if p is not None)
    adjusted: list[float | None] = [None] * len(found)
    highest = 0.0
    for rank, (p, place) in enumerate(order):
        highest = max(highest, min(1.0, p * (len(found) - rank)))
        adjusted[place] = highest
    return adjusted


def benjamini_hochberg(found: Sequence[float | None]) -> list[float | None]:
    """Adjusted p-values: of those below x at most a share x is expected to be wrong (1995).

    None stays None and still counts as a comparison that was made.
    """
    order = sorted(((p, place) for place, p in enumerate(found) if p is not None), reverse=True)
    adjusted: list[float | None] = [None] * len(found)
    lowest = 1.0
    for rank, (p, place) in zip(range(len(order), 0, -1), order, strict=True):
        lowest = min(lowest, p * len(found) / rank)
        adjusted[place] = lowest
    return adjusted
