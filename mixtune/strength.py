"""Answers at several adapter strengths → which strength each cocktail gets, chosen on validation.

The same strengths are tried for every cocktail, and the choice is by the same number: the mean over
the study's tasks of each one's main metric, a mean over the seeds that have all strengths. Ties go
to the strength nearest to 1.

Knows: which units are strengths, what was chosen. Does not know: models, how a number is shown.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from mixtune.analysis.effects import compare
from mixtune.analysis.results import Measured, SystemInfo, measure
from mixtune.derive import Derived
from mixtune.errors import SpecError
from mixtune.planning.strengths import KIND, at
from mixtune.records import Estimate
from mixtune.store import PlanRow

FILE = "strength.json"
"""What was chosen, by which numbers, in the study's folder."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One cocktail at one strength: its value on validation, and whether it was chosen."""

    cocktail: str
    strength: float
    value: float
    seeds: int
    chosen: bool


class Strengths:
    """The strengths that were answered at, of a study."""

    def __init__(self, derived: Derived) -> None:
        self.derived = derived

    def score(self) -> None:
        """Score what is not scored by the current parsers; needs the datasets, no model.

        Raises:
            DataError: the dataset no longer holds the items that were answered.
        """
        for row in self._done():
            if self.derived.damaged(row):
                self.derived.score_one(row)

    def choose(self, names: Sequence[str], grid: Sequence[float]) -> list[Tried]:
        """The best strength of each cocktail on validation; kept in `strength.json`.

        Raises:
            SpecError: a cocktail has no seed that answered at all strengths.
        """
        measured = self._measured("validation", names)
        kept = self.chosen()
        found = []
        for name in names:
            values, seeds = _values(measured, name, grid)
            best = min(grid, key=lambda s: (-values[s], abs(s - 1), s))
            kept[name] = {
                "strength": best,
                "split": "validation",
                "tried": {f"{s:g}": values[s] for s in grid},
                "tasks": list(self.derived.study.tasks),
                "seeds": seeds,
                "at": time.time(),
            }
            found += [Tried(name, s, values[s], len(seeds), s == best) for s in grid]
        self.derived.store.write_text(FILE, json.dumps(kept, indent=1, sort_keys=True) + "\n")
        return found

    def chosen(self) -> dict[str, Any]:
        """What was chosen so far: cocktail → the choice and the numbers behind it."""
        if not (self.derived.store.folder / FILE).is_file():
            return {}
        found: dict[str, Any] = self.derived.store.read_value(FILE)
        return found

    def gained(self, chosen: Mapping[str, float], split: str) -> list[Estimate]:
        """Each cocktail at its chosen strength minus itself as trained, on main metrics."""
        measured = self._measured(split, list(chosen))
        return [
            row
            for name, strength in chosen.items()
            if strength != 1
            for row in compare(measured, at(name, strength), name)
        ]

    def _done(self) -> list[PlanRow]:
        derived = self.derived
        return [r for r in derived.aside if r.kind == KIND and derived.state(r.id) == "done"]

    def _measured(self, split: str, names: Sequence[str]) -> list[Measured]:
        """Main metrics of cocktails as trained and at all strengths that there are."""
        derived = self.derived
        trained = [row for row in derived.finished() if row.cocktail in names]
        dialled = [row for row in self._done() if row.cocktail.partition("@")[0] in names]
        rows = [row for row in (*trained, *dialled) if row.split == split]
        if not rows:
            return []
        systems = {
            row.system: SystemInfo(
                row.system,
                row.cocktail,
                row.seed,
                tuple(row.cocktail.partition("@")[0].split("+")),
            )
            for row in rows
        }
        tasks = derived.tasks()
        main = {(n, derived.main_form(t), t.metrics[0]) for n, t in tasks.items() if t.metrics}
        scores = pa.concat_tables(derived.store.read_table(derived.score_file(r)) for r in rows)
        return [
            each
            for each in measure(scores, list(systems.values()), tasks)
            if (each.panel.task, each.panel.form, each.metric.name) in main
        ]


def _values(
    measured: Sequence[Measured], name: str, grid: Sequence[float]
) -> tuple[dict[float, float], list[int]]:
    """Strength → mean over tasks and seeds; and those seeds."""
    sides = [{s: each.named(at(name, s)) for s in grid} for each in measured]
    both = [
        {seed for seed in by_seed if seed is not None}
        for side in sides
        for by_seed in side.values()
    ]
    seeds = sorted(set.intersection(*both)) if both else []
    if not seeds:
        raise SpecError(
            "no seed of this cocktail has answered at all strengths",
            found=name,
            remedy="type the command again; mixtune status STUDY.yaml shows what failed",
        )
    values = {}
    for strength in grid:
        own = [
            each.values[side[strength][seed]]
            for each, side in zip(measured, sides, strict=True)
            for seed in seeds
        ]
        values[strength] = float(np.mean(own))
    return values, seeds
