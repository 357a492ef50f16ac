"""Retention of the base by each system (`mixtune probe`); the best strength of each adapter.

The same strengths are tried for every cocktail. The choice is by the mean over the study's tasks
and the seeds that have all strengths; ties go to the strength nearest to 1.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mixtune.analysis.effects import TO_BASE, compare, differences
from mixtune.analysis.measures import (
    Contrast,
    Measured,
    main_only,
    mean,
    measure,
    shared_seeds,
)
from mixtune.analysis.readings import readings
from mixtune.errors import SpecError
from mixtune.planning.systems import STRENGTH, at_strength
from mixtune.records import Estimate, ProbeRow
from mixtune.results.study_results import StudyFacts, infos_of, score_table
from mixtune.store.folder import PlanRow, Store
from mixtune.study.spec import Study
from mixtune.tasks.task import Task

RETENTION = "retention"
SCORE = "score"
RETENTION_FILE = "retention.parquet"
READING_FORM = "likelihood"


@dataclass(frozen=True, slots=True)
class Probes:
    """Probe units of the systems that were probed to their end.

    `unfinished`: number of systems that were not; they are in no number.
    """

    tasks: Mapping[str, Task]
    rows: list[PlanRow]
    unfinished: int

    @property
    def answers(self) -> list[PlanRow]:
        """Those that are answers, which are scored; in the others gold answers were read."""
        return [row for row in self.rows if row.form != READING_FORM]


def finished_probes(facts: StudyFacts, study: Study) -> Probes:
    """Units of the probes and the general text that `study`, the file as it is now, names."""
    registry = facts.registry
    tasks = {task.name: task for task in map(registry.get, study.probes)}
    general = set() if study.general is None else {registry.get(study.general).name}
    rows = [r for r in facts.extra if r.kind == "probe" and r.task in {*tasks, *general}]
    unfinished = {row.system for row in rows if not facts.is_done(row)}
    finished = [row for row in rows if row.system not in unfinished]
    return Probes(tasks, finished, len(unfinished))


def retention_estimates(facts: StudyFacts, probes: Probes) -> list[Estimate]:
    """Every number of `mixtune probe`, also written to the study's folder; answers are scored.

    Quantities: "score" of each system on each probe's main metric and form, "retention" (that
    minus the base's, paired), "reading" (analysis/readings.py).
    """
    read = [
        reading
        for row in probes.rows
        if row.form == READING_FORM
        for reading in facts.store.read_records(
            f"{row.folder}/answers/{row.id}/probes.parquet", ProbeRow
        )
    ]
    rows = _retained(facts, probes) if probes.answers else []
    rows += readings(read, infos_of(probes.rows)) if read else []
    facts.store.write_rows(RETENTION_FILE, Estimate, rows)
    return rows


def read_retention(store: Store) -> list[Estimate]:
    """Estimates that `mixtune probe` wrote; none where it never ran."""
    if not (store.folder / RETENTION_FILE).is_file():
        return []
    return store.read_records(RETENTION_FILE, Estimate)


def below_gate(facts: StudyFacts, study: Study, rows: Sequence[Estimate]) -> list[str]:
    """In words, each system and probe that falls below the study's gate; empty without a gate.

    Without an interval ("too few") nothing is shown and nothing passes; nor does a probe on which
    no system could be compared with the base.
    """
    least = study.gate.retention
    if least is None:
        return []
    lines = []
    for name in study.gate.probes or study.probes:
        probe = facts.registry.get(name).name
        own = [row for row in rows if row.quantity == RETENTION and row.target == probe]
        if not own:
            lines.append(f"{probe}: no system could be held to the base")
        for row in own:
            end = row.value if study.gate.by == "value" else row.low
            if end is None or end < least:
                value = "too few items for an interval" if end is None else f"{end:+.3f}"
                lines.append(f"{row.subject} on {probe}: {value}, lowest allowed {least:+g}")
    return lines


def _retained(facts: StudyFacts, probes: Probes) -> list[Estimate]:
    """Each system's mean score over its seeds, and its difference to the base's."""
    scores, systems = score_table(facts, probes.answers), infos_of(probes.rows)
    main = [facts.main_metric(task) for task in probes.tasks.values()]
    measured = main_only(measure(scores, systems, probes.tasks), main)
    rows = []
    for m in measured:
        for name in dict.fromkeys(m.infos[system].cocktail for system in m.values):
            rows.append(mean(m, Contrast(SCORE, name), list(m.named(name).values())))
    to_base = [row for row in differences(measured) if row.quantity == TO_BASE]
    return rows + [replace(row, quantity=RETENTION) for row in to_base]


# ---- strengths -----------------------------------------------------------------------------------

FILE = "strength.json"
"""The chosen strengths with the numbers behind them, in the study's folder."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One cocktail at one strength: its value on validation, and whether it was chosen."""

    cocktail: str
    strength: float
    value: float
    seeds: int
    chosen: bool


def finished_strengths(facts: StudyFacts) -> list[PlanRow]:
    """Sets of answers at other strengths that are done."""
    return [row for row in facts.extra if row.kind == STRENGTH and facts.is_done(row)]


def choose_strengths(facts: StudyFacts, names: Sequence[str], grid: Sequence[float]) -> list[Tried]:
    """The best strength of each cocktail on validation; also written to `strength.json`.

    Raises:
        SpecError: a cocktail has no seed that answered at all strengths.
    """
    measured = _measured_strengths(facts, "validation", names)
    chosen = read_strengths(facts.store)
    rows = []
    for name in names:
        runs = {s: [(m, m.named(at_strength(name, s))) for m in measured] for s in grid}
        seeds = shared_seeds(
            (seed for seed in by_seed if seed is not None)
            for own in runs.values()
            for _, by_seed in own
        )
        if not seeds:
            raise SpecError(
                "no seed of this cocktail has answered at all strengths",
                found=name,
                remedy="type the command again; mixtune status STUDY.yaml shows what failed",
            )
        values = {
            strength: float(np.mean([m.values[by_seed[s]] for m, by_seed in own for s in seeds]))
            for strength, own in runs.items()
        }
        best = min(grid, key=lambda s: (-values[s], abs(s - 1), s))
        chosen[name] = {
            "strength": best,
            "split": "validation",
            "tried": {f"{s:g}": values[s] for s in grid},
            "tasks": list(facts.study.tasks),
            "seeds": seeds,
            "at": time.time(),
        }
        rows += [Tried(name, s, values[s], len(seeds), s == best) for s in grid]
    facts.store.write_text(FILE, json.dumps(chosen, indent=1, sort_keys=True) + "\n")
    return rows


def read_strengths(store: Store) -> dict[str, Any]:
    """Cocktail → the choice and the numbers behind it, as far as any was made."""
    if not (store.folder / FILE).is_file():
        return {}
    chosen: dict[str, Any] = store.read_value(FILE)
    return chosen


def strength_gains(facts: StudyFacts, chosen: Mapping[str, float], split: str) -> list[Estimate]:
    """Each cocktail at its chosen strength minus itself as trained, on main metrics."""
    measured = _measured_strengths(facts, split, list(chosen))
    return [
        row
        for name, strength in chosen.items()
        if strength != 1
        for row in compare(measured, at_strength(name, strength), name)
    ]


def _measured_strengths(facts: StudyFacts, split: str, names: Sequence[str]) -> list[Measured]:
    """Main metrics of cocktails as trained and at all strengths that there are."""
    trained = [row for row in facts.finished() if row.cocktail in names]
    scaled = [row for row in finished_strengths(facts) if row.scaled_from in names]
    rows = [row for row in (*trained, *scaled) if row.split == split]
    if not rows:
        return []
    measured = measure(score_table(facts, rows), infos_of(rows), facts.tasks)
    return main_only(measured, facts.main_metrics.values())
