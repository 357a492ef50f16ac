"""docs/statistics.md from the simulations that are kept.

Knows: names of cases, tables. Does not know: how a study is made up.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "statistics.md"
FEWEST = 100
"""Intervals below which a share of them says nothing."""
UNSTEADY = "items, one cell unsteady"
"""Cases in which the runs of one of the two cells scatter three times as much as the others'."""
Kept = Mapping[str, Mapping[str, Any]]

HEAD = """# How often it is right

Simulated studies go through the package's own panels, intervals, choices and claims, and the truth
is known. Made by `python -m bench.statistics`, written with `--write-docs`; the numbers are in
`bench/results/statistics.json`, {studies:,} studies a case, {dates}.

Items have a difficulty that all runs share, so that right and wrong of two equal models correlate
by about .7; a run's true accuracy scatters by 0.7 points about its cell's, which is about 80 %.
A share of 95 % of 2,000 studies has a standard error of half a point.
"""
CLAIMS = """## Claims

55 cells (the single task, its control at equal exposure, 53 cocktails), chosen on 500 validation
items with one seed. **Ours**: `confirm` and `claims`, five fresh seeds on 1,000 test items (500
with nine targets), the worst of all arms, Holm over targets. **As published**: the best of all on
the test items, one seed, held against the single task; then the same with McNemar's test at 5 %.

| truth | ours confirms anything | as published: sees a gain | calls it significant | gain it sees |
|---|---|---|---|---|"""
POWER = """
Where all are equal, what is confirmed is wrong, and must be below 5 %. Where one of the cocktails
is truly better, the first column is the power of the whole procedure: the better cell has to be
chosen first, among 53, by one seed on 500 items.
"""
COVERAGE = """## Coverage of 95 % intervals

At least 93 % or "too few" is what we ask; more than 95 % is wider than need be. With one seed the
truth is that of the run at hand. **One cell unsteady**: the runs of the better of the two cells
scatter three times as much as all others. With two to four seeds the variance between runs is
pooled over cells, so such a cell's interval is too narrow; from five seeds on, as many as a claim
has unless a study asks for fewer, each cell has its own, and it holds.

| items | n | seeds | difference | mean | too few | mean width of the difference |
|---|---|---|---|---|---|---|"""
TIES = """## Ties

Two one-sided tests at 5 % with a margin of one point, five seeds, 20,000 items in clusters of ten.
At the margin at most 5 % may be called a tie.

| truth | called a tie |
|---|---|"""
BEST = """## The best of many equal cells

On 970 items. What `best-of-n` says that chance gives the best one, beside what chance gave it.
With one seed nothing is known of run noise, so it says too little, and says that it does.

| cells | said | gained |
|---|---|---|"""


def written(kept: Kept) -> str:
    """The page; cases by their names, numbers in them by size."""
    kept = dict(sorted(kept.items(), key=lambda one: _natural(one[0])))
    studies = min(int(case["studies"]) for case in kept.values())
    dates = sorted({case["at"] for case in kept.values()})
    parts = [
        HEAD.format(studies=studies, dates=" to ".join(dict.fromkeys((dates[0], dates[-1])))),
        _claims(kept),
        _coverage(kept),
        _ties(kept),
        _best(kept),
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
