"""docs/statistics.md from the simulations that are kept.

Knows: names of cases, tables. Does not know: how a study is made up.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.gains import BINS, RUN_SD
from mixtune.analysis.hierarchy import INTERCEPT, SLOPE

PAGE = Path(__file__).parent.parent / "docs" / "statistics.md"
FEWEST = 100
"""Intervals below which a share of them says nothing."""
UNSTEADY = "items, one cell unsteady"
"""Cases in which the runs of one of the two cells scatter three times as much as the others'."""
Kept = Mapping[str, Mapping[str, Any]]

HEAD = """# Error rates in simulated studies

Studies with known true effects are simulated and analysed with the package's own intervals,
selection and claims. `python -m bench.statistics` runs the simulations, `--write-docs` writes this
page; the numbers are in `bench/results/statistics.json`, {studies:,} studies per case, {dates}.

Items have a difficulty that all runs share, so the answers of two equally good models correlate by
about .7. A run's true accuracy varies around its cell's, about 80 %, with a standard deviation of
0.7 points. A share of 95 % of 2,000 studies has a standard error of half a point.
"""
CLAIMS = """## Claims

55 cells (the single task, its control at equal exposure, 53 cocktails), selected on 500 validation
items with one seed. **mixtune**: `confirm` and `claims`, five new seeds on 1,000 test items (500
with nine targets), the least favourable arm, Holm over targets. **As published**: the cocktail with
the best test score of one seed, compared with the single task; then the same with McNemar's test at
5 %.

| truth | mixtune confirms a gain | published: sees a gain | significant (McNemar) | seen gain |
|---|---|---|---|---|"""
POWER = """
If all cells are equal, every confirmed gain is false; the rate must be below 5 %. If one cocktail
is truly better, the first column is the power of the whole procedure, which must first select that
cocktail among 53 with one seed on 500 items.
"""
COVERAGE = """## Coverage of 95 % intervals

The requirement is a coverage of at least 93 %, or "too few"; above 95 %, intervals are wider than
necessary. With one seed the true value is that of this run. **One cell unsteady**: the runs of the
better of the two cells vary three times as much as all others. With two to four seeds the variance
between runs is pooled over cells, so the interval of such a cell is too narrow. From five seeds on
(the default of a claim) each cell has its own variance, and coverage holds.

| items | n | seeds | coverage: difference | coverage: mean | too few | width of the difference |
|---|---|---|---|---|---|---|"""
TIES = """## Ties

Two one-sided tests at 5 % with a margin of one point, five seeds, 20,000 items in clusters of ten.
If the true difference equals the margin, at most 5 % may be called a tie.

| truth | called a tie |
|---|---|"""
BEST = """## The best of many equal cells

The gain that the best of equal cells has by chance, on 970 items: as estimated by `best-of-n`, and
the true one. With one seed the variance between runs is unknown, so the estimate is too small, and
its note states that.

| cells | estimated | true |
|---|---|---|"""

GAINS = """## One model of all gains

Nine ingredients in the incremental design (17 cells on each target), run noise of {run} points,
items as of 970; {studies} studies a case. Coverage of 95 % posterior intervals: of the terms,
all of which are truly 0, of all gains, of the gain of the cell that looks best. Optimism: its
posterior mean above its true gain, in points. With one seed the scatter of runs is assumed, not
measured.

| truth | targets | seeds | one other | each further | has general | all gains | best | optimism |
|---|---|---|---|---|---|---|---|---|"""
CHANCES = """
Stated chances of being a target's best cell, all cases together. Those from 40 to 70 % are about
five points too high.

| stated | cells | mean stated | were best |
|---|---|---|---|"""


def written(kept: Kept) -> str:
    """The page; cases by their names, numbers in them by size."""
    kept = dict(sorted(kept.items(), key=lambda one: _natural(one[0])))
    studies = min(int(c["studies"]) for name, c in kept.items() if not name.startswith("gains/"))
    dates = sorted({case["at"] for case in kept.values()})
    parts = [
        HEAD.format(studies=studies, dates=" to ".join(dict.fromkeys((dates[0], dates[-1])))),
        _claims(kept),
        _coverage(kept),
        _ties(kept),
        _best(kept),
        *_gains(kept),
    ]
    return "\n".join(parts)


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (0, part) for part in parts]


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.2f} points"


def _mean(case: Mapping[str, Any], name: str) -> float:
    return float(case[name]) / float(case["studies"])


def _claims(kept: Kept) -> str:
    lines = [CLAIMS]
    for name, case in kept.items():
        if name.startswith("claims/"):
            lines.append(
                f"| {name.removeprefix('claims/')} | {_share(_mean(case, 'confirmed studies'))} "
                f"| {_share(_mean(case, 'paper studies'))} "
                f"| {_share(_mean(case, 'paper tested studies'))} "
                f"| {100 * _mean(case, 'paper gain'):+.1f} points |"
            )
    lines.append(POWER)
    return "\n".join(lines)


def _coverage(kept: Kept) -> str:
    lines = [COVERAGE]
    for name, case in kept.items():
        if not name.startswith("coverage/"):
            continue
        _, what, n, seeds = name.split("/")
        few = float(case.get("difference too few", 0.0)) / float(case["studies"])
        cells = [what, n.removeprefix("n="), seeds.removeprefix("seeds=")]
        for side in ("difference", "mean"):
            made = float(case.get(f"{side} intervals", 0.0))
            cells.append(_share(float(case[f"{side} covered"]) / made) if made >= FEWEST else "–")
        made = float(case.get("difference intervals", 0.0))
        width = 100 * float(case.get("difference width", 0.0)) / max(made, 1.0)
        wide = f"{width:.1f} points" if made >= FEWEST else "–"
        lines.append(f"| {' | '.join([*cells, _share(few), wide])} |")
    return "\n".join([*lines, ""])


def _ties(kept: Kept) -> str:
    lines = [TIES]
    lines += [
        f"| {name.removeprefix('ties/')} | {_share(_mean(case, 'ties'))} |"
        for name, case in kept.items()
        if name.startswith("ties/")
    ]
    return "\n".join([*lines, ""])


def _best(kept: Kept) -> str:
    lines = [BEST]
    lines += [
        f"| {name} | {_points(_mean(case, 'said'))} | {_points(_mean(case, 'gained'))} |"
        for name, case in kept.items()
        if name.startswith("best of")
    ]
    return "\n".join([*lines, ""])


def _gains(kept: Kept) -> list[str]:
    cases = {name: case for name, case in kept.items() if name.startswith("gains/")}
    if not cases:
        return []
    counts = sorted({int(case["studies"]) for case in cases.values()})
    lines = [GAINS.format(run=RUN_SD, studies=" to ".join(map(str, counts)))]
    for name, case in cases.items():
        _, truth, targets, seeds = name.split("/")
        covered = [
            _share(_mean(case, f"{term} covered"))
            for term in (INTERCEPT, SLOPE, "has general", "gains", "best")
        ]
        size = [targets.removeprefix("targets="), seeds.removeprefix("seeds=")]
        optimism = f"{_mean(case, 'optimism'):+.2f}"
        lines.append(f"| {' | '.join([truth, *size, *covered, optimism])} |")
    lines.append(CHANCES)
    for place in range(BINS):
        cells, stated, best = (
            sum(float(case.get(f"bin {place} {what}", 0.0)) for case in cases.values())
            for what in ("cells", "stated", "best")
        )
        if cells:
            ends = f"{100 * place / BINS:.0f} to {100 * (place + 1) / BINS:.0f} %"
            share = best / cells
            error = (share * (1 - share) / cells) ** 0.5
            lines.append(
                f"| {ends} | {cells:.0f} | {_share(stated / cells)} | {_share(share)} ± "
                f"{100 * error:.1f} |"
            )
    return ["\n".join([*lines, ""])]
