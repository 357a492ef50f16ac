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
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from bench.machine import provenance, typed
from bench.results import write_or_print
from mixtune.analysis.claims import ALPHA
from mixtune.analysis.effects import minus
from mixtune.analysis.intervals import holm
from mixtune.analysis.measures import Measured
from mixtune.cli.app import Request
from mixtune.datasets.toy import RELATIONS
from mixtune.planning.cells import title
from mixtune.records import Estimate
from mixtune.results.study_results import measure_split

FOUND, OPPOSITE, UNSEEN = "found", "the opposite was found", "not found"
CLEAN, ALARM = "no difference seen, as expected", "a difference, where none was expected"


@dataclass(frozen=True, slots=True)
class Row(Estimate):
    """A difference in the target's main metric, with what was expected of it and what is found.

    `adjusted` is by Holm here, over the relations with a sign.
    """

    expected: str = ""
    verdict: str = ""


def relations(found: Sequence[Measured]) -> list[Row]:
    """Every relation with a sign, then the controls; `missing` says what is left out.

    Args:
        found: what is measured, one form and metric a task.
    """
    by_target = {measured.panel.task: measured for measured in found}
    signed = [
        Row(**asdict(row), expected=sign)
        for sign, target, subject, reference in _signed()
        if target in by_target
        for row in minus(by_target[target], "relation", subject, reference)
    ]
    corrected = holm([row.p for row in signed])
    rows = [replace(row, adjusted=p) for row, p in zip(signed, corrected, strict=True)]
    rows += [
        Row(**asdict(row), expected="0")
        for measured in found
        for subject, reference in _controls(measured)
        for row in minus(measured, "control", subject, reference)
    ]
    return [replace(row, verdict=_verdict(row)) for row in rows]


def missing(rows: Sequence[Row]) -> list[str]:
    """Relations with a sign whose pairs were not both trained, or share no seed."""
    there = {(row.target, row.subject, row.reference) for row in rows}
    return [f"{t}: {a} - {b}" for _, t, a, b in _signed() if (t, a, b) not in there]


def _signed() -> Iterator[tuple[str, str, str, str]]:
    """Sign, target, and the two pairs whose difference has it."""
    for one in RELATIONS:
        for zero in _zeros(one.target) if one.sign != "0" else ():
            yield one.sign, one.target, _pair(one.target, one.ingredient), _pair(one.target, zero)


def _controls(measured: Measured) -> Iterator[tuple[str, str]]:
    """The unrelated pair, and each other pair with the target that should do nothing to it."""
    target = measured.panel.task
    signed = {one.ingredient for one in RELATIONS if one.target == target and one.sign != "0"}
    for unrelated in _zeros(target):
        if target not in _zeros(unrelated):
            continue
        for name in measured.cells():
            parts = set(measured.info(name).ingredients)
            if len(parts) == 2 and target in parts and not parts & {unrelated, *signed}:
                yield _pair(target, unrelated), name


def _zeros(target: str) -> list[str]:
    return [one.ingredient for one in RELATIONS if one.target == target and one.sign == "0"]


def _pair(one: str, other: str) -> str:
    return title(sorted((one, other)))


def _verdict(row: Row) -> str:
    if row.low is None or row.high is None:
        return "cannot be said: too few items"
    if row.seeds < 2:
        return "cannot be said: one seed"
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
    request = Request(given.study, runs_dir=given.runs_dir, split="test")
    facts = request.facts_for("relations")
    rows = relations(measure_split(facts, "test").main)
    for one in missing(rows):
        print(f"left out, its pairs share no seed: {one}", file=sys.stderr)
    found = {
        "rows": [asdict(row) for row in rows],
        "missing": missing(rows),
        "training": facts.training_note,
        **provenance(f"python -m bench.relations {typed(given.study)}"),
    }
    write_or_print(found, given.out)


if __name__ == "__main__":
    main()
