"""Facts of `mixtune probe` → what each system kept of the base: scores, readings, the gate.

Everything here can be deleted on disk and made again without torch.

Knows: which units are probes, which of their numbers count. Does not know: models, tokens, how a
number is computed or shown.

Answers at several adapter strengths → which strength each cocktail gets, chosen on validation.

The same strengths are tried for every cocktail, and the choice is by the same number: the mean over
the study's tasks of each one's main metric, a mean over the seeds that have all strengths. Ties go
to the strength nearest to 1.

Knows: which units are strengths, what was chosen. Does not know: models, how a number is shown.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from mixtune.analysis.effects import TO_BASE, compare, differences
from mixtune.analysis.measures import Measured, SystemInfo, estimate, measure
from mixtune.analysis.readings import readings
from mixtune.errors import SpecError
from mixtune.planning.strengths import KIND, at
from mixtune.records import Estimate, ProbeRow
from mixtune.results.study_results import Derived
from mixtune.store.folder import PlanRow
from mixtune.study.design import members
from mixtune.study.spec import Study

RETENTION = "retention"
SCORE = "score"


class Retention:
    """What a study's probes say; `study` is the file as it is now: it names probes and gate."""

    def __init__(self, derived: Derived, study: Study) -> None:
        self.derived = derived
        self.gate = study.gate
        registry = derived.registry
        self.probes = [registry.get(name).name for name in study.probes]
        general = [] if study.general is None else [registry.get(study.general).name]
        asked = {*self.probes, *general}
        rows = [row for row in derived.aside if row.kind == "probe" and row.task in asked]
        half = {row.system for row in rows if derived.state(row.id) != "done"}
        self.rows = [row for row in rows if row.system not in half]
        self.unfinished = len({row.system for row in rows if row.system in half})
        """Systems that were not probed to their end: they are in no number."""

    def score(self) -> None:
        """Score what is not scored by the current parsers; needs the datasets, no model.

        Raises:
            DataError: the dataset no longer holds the items that were answered.
        """
        for row in self._answers():
            if self.derived.damaged(row):
                self.derived.score_one(row)

    def estimates(self) -> list[Estimate]:
        """Every number, and the file that keeps them.

        Quantities: "score" of each system on each probe's main metric and form, "retention" (that
        minus the base's, paired), "reading" (analysis/readings.py).
        """
        found = [*self._retained(), *self._readings()]
        self.derived.store.write_rows("retention.parquet", Estimate, found)
        return found

    def below(self, rows: Sequence[Estimate]) -> list[str]:
        """In words, each system and probe that the gate does not let pass; empty without a gate.

        An interval that is not there ("too few") shows nothing and does not pass; nor does a
        probe on which no system could be held to the base.
        """
        least = self.gate.retention
        if least is None:
            return []
        registry = self.derived.registry
        gated = [registry.get(name).name for name in self.gate.probes] or self.probes
        found = []
        for probe in gated:
            held = [row for row in rows if row.quantity == RETENTION and row.target == probe]
            if not held:
                found.append(f"{probe}: no system could be held to the base")
            for row in held:
                end = row.value if self.gate.by == "value" else row.low
                if end is None or end < least:
                    what = "too few items for an interval" if end is None else f"{end:+.3f}"
                    found.append(f"{row.subject} on {probe}: {what}, lowest allowed {least:+g}")
        return found

    def _answers(self) -> list[PlanRow]:
        return [row for row in self.rows if row.form != "likelihood"]

    def _systems(self) -> list[SystemInfo]:
        """What is behind the ids, in the order of the plan."""
        found = {}
        for row in self.rows:
            parts = () if row.seed is None else members(row.cocktail)
            found[row.system] = SystemInfo(row.system, row.cocktail, row.seed, parts)
        return list(found.values())

    def _retained(self) -> list[Estimate]:
        derived = self.derived
        answers = self._answers()
        if not answers:
            return []
        tasks = {name: derived.registry.get(name) for name in self.probes}
        main = {(name, derived.main_form(t), t.metrics[0]) for name, t in tasks.items()}
        scores = pa.concat_tables(derived.store.read_table(derived.score_file(r)) for r in answers)
        measured = [
            each
            for each in measure(scores, self._systems(), tasks)
            if (each.panel.task, each.panel.form, each.metric.name) in main
        ]
        apart = [row for row in differences(measured) if row.quantity == TO_BASE]
        return [*_scores(measured), *(replace(row, quantity=RETENTION) for row in apart)]

    def _readings(self) -> list[Estimate]:
        read = [
            ProbeRow(**raw)
            for row in self.rows
            if row.form == "likelihood"
            for raw in self.derived.store.read_rows(f"{row.folder}/answers/{row.id}/probes.parquet")
        ]
        return readings(read, self._systems()) if read else []


def _scores(measured: Sequence[Measured]) -> list[Estimate]:
    """Each cocktail's or fixed system's mean over its seeds."""
    rows = []
    for each in measured:
        for name in dict.fromkeys(each.infos[system].cocktail for system in each.values):
            systems = list(each.named(name).values())
            arm = each.arm(systems)
            ends = each.interval(systems, [])
            rows.append(estimate(each, (SCORE, name, ""), arm, arm.value, ends))
    return rows


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
