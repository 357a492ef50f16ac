"""Two studies side by side: systems of the same name, on items that both have.

Knows: two studies' results. Does not know: how either came to them.
"""

from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from mixtune.analysis.effects import compare
from mixtune.analysis.measures import SystemInfo, measure
from mixtune.errors import SpecError
from mixtune.records import Estimate
from mixtune.results.study_results import Derived
from mixtune.tasks.task import Task


def compare_studies(
    one: Derived, other: Derived, split: str
) -> tuple[list[Estimate], dict[str, str]]:
    """Systems of one study minus those of the same name in another; and what is left out, and why.

    Only tasks whose items are the same in both studies can be compared.

    Raises:
        SpecError: both are the same study, or no system is in both.
    """
    if one.store.folder == other.store.folder:
        raise SpecError("a study compared with itself", found=one.study.name, remedy="name two")
    left_out = different_tasks(one, other, split)
    tasks = {name: task for name, task in one.tasks().items() if name not in left_out}
    if not tasks:
        raise SpecError(
            "the studies have no task that can be compared",
            found="; ".join(f"{task}: {why}" for task, why in left_out.items()),
            wanted="a task with the same items in both",
        )
    tables = [_marked(derived, split, tasks) for derived in (one, other)]
    systems = [
        _renamed(derived, system) for derived in (one, other) for system in derived.systems()
    ]
    names = {system.cocktail for system in one.systems()}
    shared = [s.cocktail for s in other.systems() if s.cocktail in names]
    if not shared:
        raise SpecError(
            "the studies have no finished system of the same name",
            found=f"{', '.join(sorted(names))} in {one.study.name}",
            wanted=f"one of {', '.join(sorted({s.cocktail for s in other.systems()}))}",
        )
    found = measure(pa.concat_tables(tables), systems, tasks)
    rows = [
        row
        for name in dict.fromkeys(shared)
        for row in compare(found, _mark(one, name), _mark(other, name), one.study.claims.margin)
    ]
    compared = {row.subject for row in rows}
    alone = [name for name in dict.fromkeys(shared) if _mark(one, name) not in compared]
    return rows, left_out | dict.fromkeys(alone, "no seed in both studies")


def different_tasks(one: Derived, other: Derived, split: str) -> dict[str, str]:
    """Tasks of either of two studies that cannot be compared, with the reason."""
    items = [
        {
            row.task: row.items_digest
            for row in d.plan
            if row.kind == "answer" and row.split == split
        }
        for d in (one, other)
    ]
    why = {}
    for name in sorted(items[0].keys() | items[1].keys()):
        if items[0].get(name) != items[1].get(name):
            both = name in items[0] and name in items[1]
            why[name] = "other items or prompts" if both else "in one of the studies only"
    return why


def _marked(derived: Derived, split: str, tasks: Mapping[str, Task]) -> pa.Table:
    """Scores of the tasks, systems under the study's name."""
    table = derived.scores(split)
    table = table.filter(pc.is_in(table["task"], pa.array(list(tasks), pa.string())))
    names = pa.array([_mark(derived, name) for name in table["system"].to_pylist()], pa.string())
    return table.set_column(table.schema.get_field_index("system"), "system", names)


def _renamed(derived: Derived, found: SystemInfo) -> SystemInfo:
    system, cocktail = _mark(derived, found.system), _mark(derived, found.cocktail)
    return replace(found, system=system, cocktail=cocktail)


def _mark(derived: Derived, name: str) -> str:
    return f"{derived.study.name}: {name}"
