"""Claims: the chosen cocktail of each target against the single-task procedure, on fresh seeds.

Knows: choices, fresh seeds, a margin, reasons against a claim. Does not know: how the choice was
written down, files.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mixtune.analysis.effects import within_margin
from mixtune.analysis.intervals import Interval, holm
from mixtune.analysis.measures import Measured, PanelMetric
from mixtune.records import Choice, Claim

CONFIRMED, TIE, NOT_WORSE = "confirmed", "tie", "not worse"
NOT, EXPLORATORY = "not confirmed", "exploratory"
VERDICTS = (CONFIRMED, TIE, NOT_WORSE, NOT, EXPLORATORY)
ALPHA = 0.05
FIRST_SHARE = 0.8
"""Part of the error rate that a study's first choice is tested at."""


@dataclass(frozen=True, slots=True)
class Arms:
    """A choice with the cells that it is compared with: the single-task procedure and its budgets.

    `against`: names of cells, the tuned single task first, then those at equal steps and equal
    exposure where they are others. `reason`: why nothing can be confirmed, or "".
    """

    choice: Choice
    against: tuple[str, ...]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Difference:
    """The chosen cocktail minus one cell."""

    reference: str
    value: float
    ci: Interval
    seeds: int
    tied: bool | None
    not_worse: bool | None


@dataclass(frozen=True, slots=True)
class _Test:
    """The differences behind one claim, on a panel (None: not measured); runs that are missing."""

    arms: Arms
    measured: Measured | None
    differences: list[_Difference]
    missing: tuple[str, ...]

    @property
    def sign(self) -> float:
        """1 where a larger value is better, else -1."""
        return self.measured.sign if self.measured else 1.0

    @property
    def p(self) -> float | None:
        """The largest p; None where any difference has none: only what is tested is confirmed."""
        values = [row.ci.p for row in self.differences]
        return None if not values or None in values else max(p for p in values if p is not None)


def alpha_of(choice: int) -> float:
    """Error rate of a study's choices, from 0, in order: four fifths of what is left for each.

    They sum to `ALPHA`, so that choosing again until something is confirmed errs no more often.
    """
    return ALPHA * FIRST_SHARE * (1.0 - FIRST_SHARE) ** choice


def claims(
    arms: Sequence[Arms],
    measured: Sequence[Measured],
    fresh: Sequence[int],
    margin: float,
    alpha: float = ALPHA * FIRST_SHARE,
) -> list[Claim]:
    """One claim for each choice; p-values are adjusted over all of them (Holm).

    A gain is confirmed if the largest of its p-values, adjusted, is below `alpha` and every
    interval lies above zero; a tie, if it lies within ±margin of every arm (two one-sided tests).

    Args:
        arms: the choices, each with what it is compared with.
        measured: the data that the claims are read on.
        fresh: the seeds that count: those that nothing was chosen by.
        margin: differences below it do not matter, in the metric's unit.
        alpha: two-sided error rate over all of them.
    """
    panels = {m.key: m for m in measured}
    tests = []
    for pair in arms:
        choice = pair.choice
        panel = panels.get(PanelMetric(choice.target, choice.form, choice.metric))
        differences = _differences(pair, panel, fresh, margin) if panel else []
        missing = _missing(pair, panel, fresh) if panel else ()
        tests.append(_Test(pair, panel, differences, missing))
    adjusted = holm([test.p for test in tests])
    return [_claim(test, p, margin, alpha) for test, p in zip(tests, adjusted, strict=True)]


def _differences(
    arms: Arms, measured: Measured, fresh: Sequence[int], margin: float
) -> list[_Difference]:
    """The chosen cocktail minus each arm, over fresh seeds that both have; [] if one has none."""
    cells = measured.cells()
    rows = []
    for name in arms.against:
        sides = [cells.get(cell, {}) for cell in (arms.choice.cocktail, name)]
        shared = [seed for seed in fresh if all(seed in side for side in sides)]
        if not shared:
            return []
        systems, against = ([side[seed] for seed in shared] for side in sides)
        ci = measured.interval(systems, against)
        value = measured.arm(systems).value - measured.arm(against).value
        tests = within_margin(measured, systems, against, margin)
        rows.append(_Difference(name, value, ci, len(shared), tests.tied, tests.not_worse))
    return rows


def _missing(arms: Arms, measured: Measured, fresh: Sequence[int]) -> tuple[str, ...]:
    """Runs of the fresh seeds that some arm lacks: survivors alone would be compared."""
    cells = measured.cells()
    names = (arms.choice.cocktail, *arms.against)
    return tuple(
        f"{name} seed {seed}" for name in names for seed in fresh if seed not in cells.get(name, {})
    )


def _claim(test: _Test, adjusted: float | None, margin: float, alpha: float) -> Claim:
    measured, choice = test.measured, test.arms.choice
    least = min(test.differences, key=lambda row: test.sign * row.value, default=None)
    claim = Claim(
        target=choice.target,
        subject=choice.cocktail,
        reference=least.reference if least else choice.single,
        split=measured.panel.split if measured else "",
        form=choice.form,
        metric=choice.metric,
        value=least.value if least else 0.0,
        low=least.ci.low if least else None,
        high=least.ci.high if least else None,
        p=test.p,
        adjusted=adjusted,
        n=measured.panel.n if measured else 0,
        clusters=measured.panel.clusters if measured else 0,
        seeds=min((row.seeds for row in test.differences), default=0),
        margin=margin,
        tried=choice.tried,
        tried_single=choice.tried_single,
        verdict="",
        reason="",
        sentence="",
        method=least.ci.method if least else "",
        seed=measured.seed if measured else 0,
        alpha=alpha,
    )
    reason = _exploratory_reason(test, claim)
    verdict = EXPLORATORY if reason else _verdict(test, adjusted, alpha)
    claim = replace(claim, verdict=verdict, reason=reason)
    return replace(claim, sentence=sentence(claim))


def _exploratory_reason(test: _Test, claim: Claim) -> str:
    if test.arms.reason:
        return test.arms.reason
    if test.missing or not test.differences:
        names = ", ".join(test.missing[:3])
        more = f" and {len(test.missing) - 3} more" if len(test.missing) > 3 else ""
        return (
            f"runs are missing: {names}{more}" if names else "runs of the fresh seeds are missing"
        )
    if claim.low is None:
        return "too few items for an interval"
    return "one seed" if claim.seeds < 2 else ""


def _verdict(test: _Test, adjusted: float | None, alpha: float) -> str:
    worst = [row.ci.low if test.sign > 0 else row.ci.high for row in test.differences]
    above = all(end is not None and test.sign * end > 0 for end in worst)
    if above and adjusted is not None and adjusted < alpha:
        return CONFIRMED
    if all(row.tied for row in test.differences):
        return TIE
    return NOT_WORSE if all(row.not_worse for row in test.differences) else NOT


def exploratory(
    choices: Sequence[Choice], measured: Sequence[Measured], margin: float, reason: str
) -> list[Claim]:
    """Claims on the data that the choice was made by: never more than exploratory."""
    seeds = sorted({seed for choice in choices for seed in choice.seeds})
    arms = [Arms(c, tuple(dict.fromkeys((c.single, c.plain))), reason) for c in choices]
    return claims(arms, measured, seeds, margin)


def unequal(choice: Choice, single_runs: int) -> str:
    """Why budgets are not equal enough for a claim, or ""."""
    needed = min(choice.tried, single_runs)
    if choice.tried_single >= needed:
        return ""
    return (
        "unequal budgets: the single task was tuned with "
        f"{_several(choice.tried_single, 'run')}, and {needed} are stated"
    )


# ---- sentences -----------------------------------------------------------------------------------


def sentence(claim: Claim) -> str:
    """The claim in words, number first, both tuning budgets in it."""
    chosen = f"{claim.subject}, chosen on validation within {_several(claim.tried, 'run')},"
    if not claim.seeds:
        return f"On {claim.target} nothing can be said of {chosen} because {claim.reason}."
    seed = "seed" if claim.verdict == EXPLORATORY else "fresh seed"
    p = "no p"
    if claim.adjusted is not None:
        p = f"Holm p {p_text(claim.adjusted)}, tested at {claim.alpha:.2g}"
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
    if claim.verdict == NOT_WORSE:
        return f"is worse by less than {100 * claim.margin:g} points, if at all, than"
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


def _several(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def p_text(value: float) -> str:
    """A p-value with three decimals; the smallest are not written as nothing."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
