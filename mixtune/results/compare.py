"""Two systems of a study, or two studies, side by side on items that both have."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from mixtune.analysis.effects import compare
from mixtune.analysis.measures import BASE, MAJORITY, PanelMetric, SystemInfo, measure
from mixtune.errors import SpecError, did_you_mean
from mixtune.planning.cells import sorted_title
from mixtune.records import Estimate
from mixtune.results.study_results import (
    SplitResults,
    StudyFacts,
    read_scores,
    system_infos,
    with_column,
)
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


def compare_studies(facts: StudyFacts, reference: StudyFacts, split: str) -> Comparison:
    """Systems of one study minus those of the same name in another.

    Only tasks whose items are the same in both studies can be compared.

    Raises:
        SpecError: both are the same study, or no system is in both.
    """
    if facts.store.folder == reference.store.folder:
        raise SpecError("a study compared with itself", found=facts.study.name, remedy="name two")
    left_out = different_tasks(facts, reference, split)
    tasks = {name: task for name, task in facts.tasks.items() if name not in left_out}
    if not tasks:
        raise SpecError(
            "the studies have no task that can be compared",
            found="; ".join(f"{task}: {why}" for task, why in left_out.items()),
            wanted="a task with the same items in both",
        )
    sides = facts, reference
    own, theirs = (system_infos(side) for side in sides)
    names, known = ({info.cocktail: info for info in infos} for infos in (own, theirs))
    shared = [name for name in known if name in names]
    if not shared:
        raise SpecError(
            "the studies have no finished system of the same name",
            found=f"{', '.join(sorted(names))} in {facts.study.name}",
            wanted=f"one of {', '.join(sorted(known))}",
        )
    scores = pa.concat_tables([_marked_scores(side, split, tasks) for side in sides])
    systems = [
        replace(i, system=_mark(side, i.system), cocktail=_mark(side, i.cocktail))
        for side, infos in zip(sides, (own, theirs), strict=True)
        for i in infos
    ]
    measured, margin = measure(scores, systems, tasks), facts.study.claims.margin
    rows: list[Estimate] = []
    for name in shared:
        of_name = compare(measured, _mark(facts, name), _mark(reference, name), margin)
        rows += of_name
        if not of_name:
            left_out[name] = "no seed in both studies"
    floors = {_mark(facts, name) for name, i in names.items() if i.kind in (BASE, MAJORITY)}
    return Comparison(rows, left_out, frozenset(floors))


def different_tasks(facts: StudyFacts, reference: StudyFacts, split: str) -> dict[str, str]:
    """Tasks of either of two studies that cannot be compared, with the reason."""
    own, known = (
        {r.task: r.items_digest for r in side.plan if r.kind == "answer" and r.split == split}
        for side in (facts, reference)
    )
    different = {task: "in one of the studies only" for task in own.keys() ^ known.keys()}
    shared = own.keys() & known.keys()
    different |= {t: "other items or prompts" for t in shared if own[t] != known[t]}
    return dict(sorted(different.items()))


def _marked_scores(facts: StudyFacts, split: str, tasks: Mapping[str, Task]) -> pa.Table:
    """Scores of the tasks, systems under the study's name."""
    table = read_scores(facts, split)
    table = table.filter(pc.is_in(table["task"], pa.array(list(tasks), pa.string())))
    return with_column(table, "system", [_mark(facts, n) for n in table["system"].to_pylist()])


def _mark(facts: StudyFacts, name: str) -> str:
    return f"{facts.study.name}: {name}"
