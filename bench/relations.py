"""What was written down of the embedded suite before any model was trained: found, or not found.

    mixtune run studies/suite.yaml
    python -m bench.relations studies/suite.yaml [--runs-dir runs] [--out FILE]

A relation is a difference of two pairs under the same budget (docs/embedded-suite.md): the target
with the ingredient minus the target with an ingredient marked "0" for it. The negative control is
the pair whose two tasks are marked "0" for each other: beside each other against beside any other
task that is not expected to do anything. Holm over the relations; controls are not corrected, so
that one of twenty may seem to differ.

Knows: RELATIONS, what a study measured. Does not know: how it was trained.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.machine import commit, machine
from bench.results import write_or_print
from mixtune.analysis.adjust import holm
from mixtune.analysis.results import Measured
from mixtune.derive import Derived
from mixtune.design import members, title
from mixtune.store import Store
from mixtune.study_file import load_study
from mixtune.tasks.registry import Registry
from mixtune.tasks.toy import RELATIONS, Relation

ALPHA = 0.05
FOUND, OPPOSITE, UNSEEN = "found", "the opposite was found", "not found"
CLEAN, ALARM = "no difference, as expected", "a difference, where none was expected"


@dataclass(frozen=True, slots=True)
class Row:
    """A difference in the target's main metric, over the seeds that both pairs have."""

    target: str
    subject: str
    reference: str
    expected: str
    value: float
    low: float | None
    high: float | None
    p: float | None
    adjusted: float | None
    seeds: int
    n: int
    method: str
    verdict: str = ""


def relations(found: Sequence[Measured]) -> list[Row]:
    """Every relation with a sign, then the controls; those whose cells share no seed are left out.

    Args:
        found: what is measured, one form and metric a task.
    """
    by_target = {measured.panel.task: measured for measured in found}
    signed = [row for one in RELATIONS if one.sign != "0" for row in _signed(one, by_target)]
    kept = [replace(row, adjusted=p) for row, p in zip(signed, _holm(signed), strict=True)]
    controls = [
        row
        for one in RELATIONS
        if one.sign == "0" and _mutual(one.ingredient, one.target)
        for row in _controls(one.ingredient, one.target, by_target)
    ]
    return [replace(row, verdict=_verdict(row)) for row in [*kept, *controls]]


def _holm(rows: Sequence[Row]) -> list[float | None]:
    return list(holm([row.p for row in rows]))


def _zeros(target: str) -> list[str]:
    return [one.ingredient for one in RELATIONS if one.target == target and one.sign == "0"]


def _mutual(one: str, other: str) -> bool:
    return one in _zeros(other) and other in _zeros(one)


def _signed(relation: Relation, by_target: dict[str, Measured]) -> Iterator[Row]:
    target = relation.target
    for zero in _zeros(target):
        pairs = (target, relation.ingredient), (target, zero)
        yield from _row(by_target.get(target), pairs, relation.sign)


def _controls(ingredient: str, target: str, by_target: dict[str, Measured]) -> Iterator[Row]:
    """The unrelated pair minus each other pair with the target that should do nothing to it."""
    signed = {one.ingredient for one in RELATIONS if one.target == target and one.sign != "0"}
    measured = by_target.get(target)
    for name in measured.cells() if measured else ():
        parts = members(name)
        others = set(parts) - {target}
        if len(parts) != 2 or target not in parts or others & {ingredient, *signed}:
            continue
        yield from _row(measured, ((target, ingredient), parts), "0")


def _row(
    measured: Measured | None, pairs: tuple[Sequence[str], Sequence[str]], expected: str
) -> Iterator[Row]:
    if measured is None:
        return
    cells, names = measured.cells(), [title(sorted(pair)) for pair in pairs]
    sides = [cells.get(name, {}) for name in names]
    shared = sorted(sides[0].keys() & sides[1].keys())
    if not shared:
        return
    systems, against = ([side[seed] for seed in shared] for side in sides)
    ends = measured.interval(systems, against)
    value = measured.arm(systems).value - measured.arm(against).value
    panel = measured.panel
    yield Row(
        panel.task, names[0], names[1], expected, value, ends.low, ends.high, ends.p, ends.p,
        len(shared), panel.n, f"{panel.form} {measured.metric.name}; {ends.method}",
    )  # fmt: skip


def _verdict(row: Row) -> str:
    if row.low is None or row.high is None:
        return "cannot be said: too few items"
    differs = not row.low <= 0.0 <= row.high
    if row.expected == "0":
        return ALARM if differs else CLEAN
    if not differs or row.adjusted is None or row.adjusted >= ALPHA:
        return UNSEEN
    return FOUND if (row.value > 0) == (row.expected == "+") else OPPOSITE


def main() -> None:
    """Print or write what is found of each relation, on test."""
    parser = argparse.ArgumentParser(description="Which relations of the embedded suite are found?")
    parser.add_argument("study", type=Path)
    parser.add_argument("--runs-dir", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    study = load_study(given.study)
    store = Store(given.runs_dir / study.name)
    derived = Derived(store, Registry.of(study, None))
    rows = relations(derived.measured_main("test"))
    facts = {
        "rows": [asdict(row) for row in rows],
        "training": derived.training_note(),
        "command": f"python -m bench.relations {given.study}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
    }
    write_or_print(facts, given.out)


if __name__ == "__main__":
    main()
