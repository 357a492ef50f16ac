"""Facts of `mixtune probe` → what each system kept of the base: scores, readings, the gate.

Everything here can be deleted on disk and made again without torch.

Knows: which units are probes, which of their numbers count. Does not know: models, tokens, how a
number is computed or shown.
"""

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa

from mixtune.analysis.effects import TO_BASE, differences
from mixtune.analysis.readings import readings
from mixtune.analysis.results import Measured, SystemInfo, estimate, measure
from mixtune.derive import Derived
from mixtune.design import members
from mixtune.records import Estimate, ProbeRow
from mixtune.spec import Study
from mixtune.store import PlanRow

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
