"""The control that trains nothing: beside each cocktail the sum of its single tasks' adapters.

Knows: which runs are a cocktail's single tasks, by what parts they are weighed, the sum's id. Does
not know: torch, files, how adapters are added.
"""

from collections.abc import Callable, Iterator, Sequence

from mixtune.errors import SpecError
from mixtune.identity import make_id
from mixtune.planning.runs import AnswerPlan, RunPlan, Summand

NOTE = "merged"
"""What tells the merged single tasks from the cocktail that was trained."""


def merged_runs(
    runs: Sequence[RunPlan], answers: Callable[[str], tuple[AnswerPlan, ...]]
) -> list[RunPlan]:
    """A system for each trained cocktail and seed, in their order; `answers`: of a system's id.

    Raises:
        SpecError: the design leaves out the single task of a cocktail.
    """
    return [
        RunPlan(
            system=system,
            kind="merged",
            cocktail=run.cocktail,
            seed=run.seed,
            mix=(),
            answers=answers(system),
            tokens=0,
            note=NOTE,
            parts=parts,
        )
        for run, parts in _summands(runs)
        for system in [_id(parts)]
    ]


def _summands(runs: Sequence[RunPlan]) -> Iterator[tuple[RunPlan, tuple[Summand, ...]]]:
    """Each cocktail's single tasks of the same seed, weighed as its rows are; weights add up to 1.

    Doses and other cells with a note have no merged system of their own.
    """
    plain = {(run.name, run.seed): run for run in runs if run.kind == "trained" and not run.note}
    for run in plain.values():
        if len(run.cocktail) < 2:
            continue
        lacking = [name for name in run.cocktail if (name, run.seed) not in plain]
        if lacking:
            raise SpecError(
                f"budget.merged: each ingredient of {run.name} has to be trained alone too",
                found=f"{', '.join(lacking)} is not",
                wanted="a design with the family singles",
                remedy="add singles to the design, or set budget.merged to false",
            )
        total = sum(row.rows_got for row in run.mix)
        yield (
            run,
            tuple(
                Summand(single.system, single.folder, row.rows_got / total)
                for row in run.mix
                for single in [plain[row.ingredient, run.seed]]
            ),
        )


def _id(parts: Sequence[Summand]) -> str:
    """Empty where the parts have no ids yet."""
    if not parts or not all(part.system for part in parts):
        return ""
    return make_id("merged", {"parts": sorted([part.system, part.weight] for part in parts)})
