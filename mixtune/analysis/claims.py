"""What may be said of each target: the chosen cocktail against the single-task procedure.

Knows: choices, fresh seeds, a margin, reasons against a claim. Does not know: how the choice was
written down, files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mixtune.analysis.effects import equivalent
from mixtune.analysis.intervals import Interval, holm
from mixtune.analysis.measures import Measured
from mixtune.records import Choice, Claim

CONFIRMED, TIE, NOT, EXPLORATORY = "confirmed", "tie", "not confirmed", "exploratory"
ALPHA = 0.05


@dataclass(frozen=True, slots=True)
class Arms:
    """A choice with the cells that it is held against: the single-task procedure and its budgets.

    `against`: names of cells, the tuned single task first, then those at equal steps and equal
    exposure where they are others. `reason`: why nothing can be confirmed, or "".
    """

    choice: Choice
    against: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Found:
    """The difference to one arm."""

    reference: str
    value: float
    ends: Interval
    seeds: int
    tied: bool | None


def claims(
    arms: Sequence[Arms], found: Sequence[Measured], fresh: Sequence[int], margin: float
) -> list[Claim]:
    """One claim for each choice; p-values are adjusted over all of them (Holm).

    A gain is confirmed if the larger of its p-values, adjusted, is below 5 % and every interval
    lies above nothing; a tie, if it lies within ±margin of every arm (two one-sided tests).

    Args:
        arms: what was chosen, with what it is held against.
        found: what is measured on the data that the claims are read on.
        fresh: the seeds that count: those that nothing was chosen by.
        margin: differences below it do not matter, in the metric's unit.
    """
    panels = {(m.panel.task, m.panel.form, m.metric.name): m for m in found}
    compared = []
    for one in arms:
        choice = one.choice
        measured = panels.get((choice.target, choice.form, choice.metric))
        compared.append(_compare(one, measured, fresh, margin) if measured else [])
    worst = [_largest_p(each) for each in compared]
    made = []
    for one, each, p, adjusted in zip(arms, compared, worst, holm(worst), strict=True):
        measured = panels.get((one.choice.target, one.choice.form, one.choice.metric))
        made.append(_claim(one, each, (p, adjusted), (measured, margin)))
    return made


def _compare(one: Arms, measured: Measured, fresh: Sequence[int], margin: float) -> list[_Found]:
    """The chosen cocktail minus each arm, over fresh seeds that both have; [] if one has none."""
    cells = measured.cells()
    rows = []
    for name in one.against:
        sides = [cells.get(cell, {}) for cell in (one.choice.cocktail, name)]
        shared = [seed for seed in fresh if all(seed in side for side in sides)]
        if not shared:
            return []
        systems, against = ([side[seed] for seed in shared] for side in sides)
        ends = measured.interval(systems, against)
        value = measured.arm(systems).value - measured.arm(against).value
        tied = equivalent(measured, systems, against, margin)
        rows.append(_Found(name, value, ends, len(shared), tied))
    return rows


def _largest_p(found: Sequence[_Found]) -> float | None:
    """None where any arm has none: what is not tested is not confirmed."""
    values = [one.ends.p for one in found]
    return None if not values or None in values else max(p for p in values if p is not None)


def _claim(
    one: Arms,
    found: Sequence[_Found],
    p: tuple[float | None, float | None],
    where: tuple[Measured | None, float],
) -> Claim:
    measured, margin = where
    choice = one.choice
    sign = 1.0 if measured is None or measured.metric.higher_is_better else -1.0
    least = min(found, key=lambda row: sign * row.value, default=None)
    claim = Claim(
        target=choice.target,
        subject=choice.cocktail,
        reference=least.reference if least else choice.single,
        split=measured.panel.split if measured else "",
        form=choice.form,
        metric=choice.metric,
        value=least.value if least else 0.0,
        low=least.ends.low if least else None,
        high=least.ends.high if least else None,
        p=p[0],
        adjusted=p[1],
        n=measured.panel.n if measured else 0,
        clusters=measured.panel.clusters if measured else 0,
        seeds=min((row.seeds for row in found), default=0),
        margin=margin,
        tried=choice.tried,
        tried_single=choice.tried_single,
        verdict="",
        reason="",
        sentence="",
        method=least.ends.method if least else "",
        seed=measured.seed if measured else 0,
    )
    verdict, reason = _verdict(one, claim, found, sign)
    claim = replace(claim, verdict=verdict, reason=reason)
    return replace(claim, sentence=sentence(claim))


def _verdict(one: Arms, claim: Claim, found: Sequence[_Found], sign: float) -> tuple[str, str]:
    reason = one.reason
    if not reason and not found:
        reason = "runs of the fresh seeds are missing"
    if not reason and claim.low is None:
        reason = "too few items for an interval"
    if not reason and claim.seeds < 2:
        reason = "one seed"
    if reason:
        return EXPLORATORY, reason
    lows = [row.ends.low if sign > 0 else row.ends.high for row in found]
    above = all(low is not None and sign * low > 0 for low in lows)
    if above and claim.adjusted is not None and claim.adjusted < ALPHA:
        return CONFIRMED, ""
    if all(row.tied for row in found):
        return TIE, ""
    return NOT, ""


def sentence(claim: Claim) -> str:
    """The claim in words, number first, both tuning budgets in it."""
    chosen = f"{claim.subject}, chosen on validation within {_several(claim.tried, 'run')},"
    if not claim.seeds:
        return f"On {claim.target} nothing can be said of {chosen} because {claim.reason}."
    seed = "seed" if claim.verdict == EXPLORATORY else "fresh seed"
    p = "no p" if claim.adjusted is None else f"Holm p {_p(claim.adjusted)}"
    text = (
        f"{points(claim.value)} on {claim.target} ({interval_text(claim.low, claim.high)}): "
        f"{chosen} {_verb(claim)} the single-task procedure ({claim.reference}), tuned with "
        f"{_several(claim.tried_single, 'run')}. {_several(claim.seeds, seed).capitalize()}, "
        f"{claim.n} items in {claim.clusters} clusters, {p}."
    )
    ending = {EXPLORATORY: f" Exploratory: {claim.reason}.", NOT: " Not confirmed."}
    return text + ending.get(claim.verdict, "")


def _verb(claim: Claim) -> str:
    if claim.verdict == CONFIRMED:
        return "beats"
    if claim.verdict == TIE:
        return f"is within ±{100 * claim.margin:g} points of"
    if claim.low is None or claim.high is None:
        return "cannot be compared with"
    return f"is {relation(claim.low, claim.high)}"


def relation(low: float, high: float) -> str:
    """A difference in words, by its interval."""
    return "above" if low > 0 else "below" if high < 0 else "not significantly different from"


def points(value: float) -> str:
    """A difference of shares in percentage points."""
    return f"{100 * value:+.1f} points"


def interval_text(low: float | None, high: float | None) -> str:
    """A 95 % interval of a difference of shares, in points."""
    if low is None or high is None:
        return "too few items for an interval"
    return f"95 % CI {100 * low:+.1f} to {100 * high:+.1f}"


def _several(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def exploratory(
    choices: Sequence[Choice], found: Sequence[Measured], margin: float, reason: str
) -> list[Claim]:
    """What the data that the choice was made by says of it: never more than exploratory."""
    seeds = sorted({seed for choice in choices for seed in choice.seeds})
    arms = [Arms(c, tuple(dict.fromkeys((c.single, c.plain))), reason) for c in choices]
    return claims(arms, found, seeds, margin)


def unequal(choice: Choice, single_runs: int) -> str:
    """Why budgets are not equal enough for a claim, or ""."""
    wanted = min(choice.tried, single_runs)
    if choice.tried_single >= wanted:
        return ""
    return (
        "unequal budgets: the single task was tuned with "
        f"{_several(choice.tried_single, 'run')}, and {wanted} are stated"
    )
