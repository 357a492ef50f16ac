"""Plan of `mixtune strength`: a study's adapters at other scaling factors.

Knows: which systems can be scaled, their ids at other strengths. Does not know: torch, which
strength is best.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from mixtune.datasets.registry import Registry
from mixtune.errors import SpecError, did_you_mean
from mixtune.identity import make_id
from mixtune.models.files import BaseModelFiles
from mixtune.planning.names import answerable
from mixtune.planning.plan import Planner
from mixtune.planning.probes import Asked
from mixtune.planning.runs import RunPlan, plan_row
from mixtune.planning.summary import content_of
from mixtune.records import Split
from mixtune.store.folder import PlanRow, Store
from mixtune.study.reading import dump_study, parse_study
from mixtune.study.spec import Study

KIND = "strength"
GRID = (0.25, 0.5, 0.75, 1.0, 1.25)
"""Strengths that are tried where none are named; 1 is as the adapter was trained."""


def at(cocktail: str, strength: float) -> str:
    """Display name of a cocktail at a strength; unchanged at 1."""
    return cocktail if strength == 1 else f"{cocktail}@{strength:g}"


def plan_strengths(
    study: Study,
    store: Store,
    registry: Registry,
    files: BaseModelFiles | None,
    strengths: Mapping[str, Sequence[float]],
    split: Split,
) -> Asked:
    """Every finished seed of some cocktails at some strengths, on one split of the study's tasks.

    `study`: the stored one counts, with the places of task files and base model as they are now.
    `strengths`: by cocktail; 1 is left out, for it is answered already.

    Raises:
        SpecError: no finished cocktail of that name, or full fine-tuning.
        StoreError: no study there, or another one.
    """
    study = stored_study(store, study)
    if study.train.method == "full":
        raise SpecError(
            "full fine-tuning leaves no adapter whose strength could be chosen",
            where=study.name,
            remedy="train adapters (train.method: lora)",
        )
    planner = Planner(study, registry, files)
    planned = planner.plan()
    rows = planned.rows()
    store.preview(rows, dump_study(planner.study), {"content": content_of(planner)})
    done = {unit.id for unit in store.units().values() if unit.state == "done"}
    trained = [run for run in planned.runs if run.kind == "trained" and run.system in done]
    names = {run.name for run in trained}
    for name in sorted(strengths.keys() - names):
        raise SpecError(
            "no trained cocktail of this study has that name",
            found=name,
            wanted=did_you_mean(name, names) if names else "nothing is trained yet",
            remedy="mixtune status STUDY.yaml lists them",
        )
    runs = tuple(
        _scaled(planner, run, strength, split)
        for run in trained
        for strength in strengths.get(run.name, ())
        if strength != 1
    )
    return Asked(planner, runs, (*rows, *_units(runs)))


def stored_study(store: Store, study: Study) -> Study:
    """The study as stored, with the places of task files and base model as they are now."""
    raw = store.read_value("study.yaml")
    return parse_study(raw | {"task_files": study.task_files, "model": study.model})


def _scaled(planner: Planner, run: RunPlan, strength: float, split: Split) -> RunPlan:
    """A run's adapter at another strength, as a system with answers of its own."""
    study, registry = planner.study, planner.registry
    system = make_id("strength", {"system": run.system, "strength": strength})
    answers = tuple(
        planner.answer(system, "adapter", registry.get(task), split, form)
        for task in study.tasks
        for form in study.evaluate.forms
        if answerable(registry.get(task), form, "adapter")
    )
    return RunPlan(
        system=system,
        kind="adapter",
        cocktail=run.cocktail,
        seed=run.seed,
        mix=(),
        answers=answers,
        tokens=0,
        label=at(run.name, strength),
        origin=f"{run.name} at strength {strength:g}",
        of=run.folder,
        strength=strength,
        scaled_from=run.name,
    )


def _units(runs: Sequence[RunPlan]) -> list[PlanRow]:
    return [replace(plan_row(run, answer), kind=KIND) for run in runs for answer in run.answers]
