"""Two systems of a study, or two studies, side by side on items that both have.

Knows: facts and scores of studies. Does not know: how a difference is computed or shown.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from mixtune.analysis.effects import compare
from mixtune.analysis.measures import BASE, MAJORITY, PanelMetric, SystemInfo, measure
from mixtune.errors import SpecError, did_you_mean
from mixtune.records import Estimate
from mixtune.results.study_results import (
    SplitResults,
    StudyFacts,
    read_scores,
    system_infos,
)
from mixtune.study.design import sorted_title
from mixtune.tasks.task import Task


@dataclass(frozen=True, slots=True)
class Comparison:
    """Differences, what is left out of them with the reason, and subjects that nobody trained."""

    rows: list[Estimate]
    left_out: Mapping[str, str] = field(default_factory=dict)
    floors: frozenset[str] = frozenset()

    def holds(self, main: Collection[PanelMetric], least: float) -> bool:
        """True if every difference in a main metric has its interval above `least`.

        False without an interval ("too few") or without a row. Pairs of untrained floors do not
        count: nobody made them better or worse.
        """
        lows = [
            row.low
            for row in self.rows
            if (row.target, row.form, row.metric) in main and row.subject not in self.floors
        ]
        return bool(lows) and all(low is not None and low > least for low in lows)


def compare_systems(
    facts: StudyFacts, measured: SplitResults, subject: str, reference: str
) -> Comparison:
    """One system minus another, each named by its cocktail or its id.

    Raises:
        SpecError: no such system, or one system twice.
    """
    names = [_cocktail(facts, measured.systems, name) for name in (subject, reference)]
    if names[0] == names[1]:
        raise SpecError("a system compared with itself", found=subject, remedy="name two")
    rows = compare(measured.measured, names[0], names[1], facts.study.claims.margin)
    if not rows:
        raise SpecError(
            "the two systems share no seed, or no task that both have answered",
            found=" and ".join(names),
            remedy="mixtune status STUDY.yaml shows what each has; run the seeds that lack",
        )
    return Comparison(rows)


def _cocktail(facts: StudyFacts, systems: Sequence[SystemInfo], name: str) -> str:
    for system in systems:
        if name == system.system or system.cocktail in (name, sorted_title(name)):
            return system.cocktail
    known = sorted({system.cocktail for system in systems})
    raise SpecError(
        "no finished system of this study has that name",
        where=facts.study.name,
        found=name,
        wanted=did_you_mean(name, known) if known else "nothing is finished yet",
        remedy="mixtune status STUDY.yaml lists them",
    )


def compare_studies(one: StudyFacts, other: StudyFacts, split: str) -> Comparison:
    """Systems of one study minus those of the same name in another.

    Only tasks whose items are the same in both studies can be compared.

    Raises:
        SpecError: both are the same study, or no system is in both.
    """
    if one.store.folder == other.store.folder:
        raise SpecError("a study compared with itself", found=one.study.name, remedy="name two")
    left_out = different_tasks(one, other, split)
    tasks = {name: task for name, task in one.tasks.items() if name not in left_out}
    if not tasks:
        raise SpecError(
            "the studies have no task that can be compared",
            found="; ".join(f"{task}: {why}" for task, why in left_out.items()),
            wanted="a task with the same items in both",
        )
    tables = [_marked_scores(facts, split, tasks) for facts in (one, other)]
    systems = [system_infos(facts) for facts in (one, other)]
    shared = _shared_names(one.study.name, *systems)
    marked = [
        _marked(facts, info)
        for facts, infos in zip((one, other), systems, strict=True)
        for info in infos
    ]
    measured = measure(pa.concat_tables(tables), marked, tasks)
    rows = [
        row
        for name in shared
        for row in compare(measured, _mark(one, name), _mark(other, name), one.study.claims.margin)
    ]
    compared = {row.subject for row in rows}
    alone = [name for name in shared if _mark(one, name) not in compared]
    floors = frozenset(_mark(one, i.cocktail) for i in systems[0] if i.kind in (BASE, MAJORITY))
    return Comparison(rows, left_out | dict.fromkeys(alone, "no seed in both studies"), floors)


def _shared_names(
    study: str, one: Sequence[SystemInfo], other: Sequence[SystemInfo]
) -> Sequence[str]:
    """Cocktails that both have."""
    names, others = {info.cocktail for info in one}, [info.cocktail for info in other]
    shared = list(dict.fromkeys(name for name in others if name in names))
    if not shared:
        raise SpecError(
            "the studies have no finished system of the same name",
            found=f"{', '.join(sorted(names))} in {study}",
            wanted=f"one of {', '.join(sorted(set(others)))}",
        )
    return shared


def different_tasks(one: StudyFacts, other: StudyFacts, split: str) -> dict[str, str]:
    """Tasks of either of two studies that cannot be compared, with the reason."""
    items = [
        {
            row.task: row.items_digest
            for row in facts.plan
            if row.kind == "answer" and row.split == split
        }
        for facts in (one, other)
    ]
    why = {}
    for name in sorted(items[0].keys() | items[1].keys()):
        if items[0].get(name) != items[1].get(name):
            both = name in items[0] and name in items[1]
            why[name] = "other items or prompts" if both else "in one of the studies only"
    return why


def _marked_scores(facts: StudyFacts, split: str, tasks: Mapping[str, Task]) -> pa.Table:
    """Scores of the tasks, systems under the study's name."""
    table = read_scores(facts, split)
    table = table.filter(pc.is_in(table["task"], pa.array(list(tasks), pa.string())))
    names = pa.array([_mark(facts, name) for name in table["system"].to_pylist()], pa.string())
    return table.set_column(table.schema.get_field_index("system"), "system", names)


def _marked(facts: StudyFacts, info: SystemInfo) -> SystemInfo:
    return replace(info, system=_mark(facts, info.system), cocktail=_mark(facts, info.cocktail))


def _mark(facts: StudyFacts, name: str) -> str:
    return f"{facts.study.name}: {name}"
