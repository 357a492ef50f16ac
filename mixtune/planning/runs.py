"""A plan: a study under its datasets' own names, its systems with their answers, units of work.

Knows: roles of datasets, names and folders of systems. Does not know: rows, tokens, how ids come
about.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mixtune.datasets.registry import Registry
from mixtune.errors import SpecError, did_you_mean
from mixtune.identity import make_id
from mixtune.models.files import BaseModelFiles
from mixtune.planning.cells import title
from mixtune.records import Form, MixRow, Split, TrainStep
from mixtune.store.folder import FOLDER_NAME, PlanRow
from mixtune.study.fields import slug
from mixtune.study.reading import parse_study
from mixtune.study.spec import RunLength, Study
from mixtune.tasks.task import Task

SystemKind = Literal["trained", "merged", "base", "majority", "api", "adapter", "model"]
"""merged: a sum of trained adapters. api: behind an endpoint. The last two were trained elsewhere,
but for adapters at another strength."""

_NEEDS = {
    "tasks": "scored",
    "judged": "judged",
    "ingredients": "trainable",
    "probes": "scored",
    "general": "trainable",
}


# ---- names ---------------------------------------------------------------------------------------


def canonical(study: Study, registry: Registry) -> Study:
    """The study with every dataset under its own name; aliases resolved.

    Raises:
        SpecError: one that does not exist, cannot be used as asked, or is named twice.
    """
    tasks = [_usable(name, registry, "tasks") for name in study.tasks]
    named = {name: _usable(name, registry, "ingredients") for name in study.ingredients}
    probe_keys = _probe_keys(study, registry, tasks)
    judged = {name: _usable(name, registry, "judged") for name in study.judged}
    for key, names in {"judged": judged, "ingredients": named}.items():
        if len(set(names.values())) < len(names):
            raise SpecError(f"{key}: two names mean the same dataset", found=names)
    for name in [*tasks, *probe_keys["probes"]]:
        if not any(answerable(registry.get(name), f, "trained") for f in study.evaluate.forms):
            raise SpecError(
                f"task {name!r} has open answers, which cannot be ranked",
                found=list(study.evaluate.forms),
                remedy="add strict to evaluate.forms",
            )
    raw = study.model_dump(mode="json")
    raw |= {"tasks": tasks, "judged": list(judged.values()), **probe_keys}
    raw["ingredients"] = {named[name]: amount for name, amount in raw["ingredients"].items()}
    design = raw["design"]
    design["explicit"] = [[named[n] for n in cocktail] for cocktail in study.design.explicit]
    for level in design["levels"]:
        level |= {key: [named[name] for name in level[key]] for key in ("add", "to")}
    raw["groups"] = {group: [named[n] for n in listed] for group, listed in study.groups.items()}
    return parse_study(raw)


def answerable(task: Task, form: Form, kind: SystemKind) -> bool:
    """Constrained answers need labels; an open answer has no majority worth the name."""
    return task.kind != "open" or (form == "strict" and kind != "majority")


def _usable(name: str, registry: Registry, key: str) -> str:
    task = registry.get(name)
    if not getattr(task, _NEEDS[key]):
        fit = [n for n in registry.names() if getattr(registry.get(n), _NEEDS[key])]
        raise SpecError(
            f"{key}: {name!r} is not {_NEEDS[key]}",
            wanted=did_you_mean(name, fit),
            remedy="mixtune tasks lists what there is",
        )
    return task.name


def _probe_keys(study: Study, registry: Registry, tasks: Sequence[str]) -> dict[str, Any]:
    """The keys `probes`, `general` and `gate`; no dataset has two roles."""
    probes = [_usable(name, registry, "probes") for name in study.probes]
    general = study.general and _usable(study.general, registry, "general")
    twice = sorted({name for name in probes if probes.count(name) > 1 or name in tasks})
    if twice:
        raise SpecError(
            f"probes: {', '.join(twice)} is named twice, or is one of the tasks",
            wanted="tasks that the study does not aim at, each once",
            remedy="leave it out of the probes: tasks are answered in any case",
        )
    if general in (*tasks, *probes):
        raise SpecError(
            f"general: {general} is answered as a task or probe",
            wanted="a dataset of general text, such as alpaca",
            remedy="name another dataset",
        )
    gated = []
    for name in study.gate.probes:
        gated.append(registry.get(name).name if name in registry else name)
        if gated[-1] not in probes:
            raise SpecError(
                f"gate.probes: {name!r} is none of the study's probes",
                wanted=did_you_mean(name, probes) if probes else "a study with probes",
                remedy="add it to probes, or leave it out of the gate",
            )
    if study.gate.retention is not None and not probes:
        raise SpecError(
            "gate.retention is set and there are no probes, so that nothing can fall below it",
            found=study.gate.retention,
            remedy="name probes, or remove the gate",
        )
    gate = study.gate.model_dump(mode="json") | {"probes": gated}
    return {"probes": probes, "general": general, "gate": gate}


# ---- systems and their answers -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Summand:
    """A run whose adapter is part of a merged one: its id and folder, and its weight."""

    system: str
    folder: str
    weight: float


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """One set of answers: a system on the items of one task and split, in one form.

    `likelihood`: gold answers are read to it, and it gives none (planning/systems.py).
    `max_new_tokens`: of a generated answer; 0 where none is generated, or how long one may be is
    open.
    """

    id: str
    task: str
    split: Split
    form: Form | Literal["likelihood"]
    items: int
    tokens: int
    items_digest: str
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class RunPlan:
    """One system: a cell with a seed, or a baseline. `system` is its train_id, "" if unresolved.

    `tokens`: tokens that pass through the model in training, shared headers counted each time.
    `course`: how long it is trained. `note`: what sets its cell apart from others of the same
    cocktail. `label` and `origin`: the name and source of a system that was not trained here. `of`
    and `strength`: the folder of the run whose adapter answers, where that is not its own, and how
    strongly; `scaled_from`: that run's cell. `parts`: the runs whose adapters are added up for it.
    """

    system: str
    kind: SystemKind
    cocktail: tuple[str, ...] = ()
    seed: int | None = None
    mix: tuple[MixRow, ...] = ()
    answers: tuple[AnswerPlan, ...] = ()
    tokens: int = 0
    label: str = ""
    origin: str = ""
    course: RunLength | None = None
    note: str = ""
    of: str = ""
    strength: float = 1.0
    scaled_from: str = ""
    parts: tuple[Summand, ...] = ()

    @property
    def name(self) -> str:
        """The cell, or the label of a system that was not trained here."""
        if self.kind in ("trained", "merged"):
            return title(self.cocktail, self.note)
        return self.label or self.kind

    @property
    def title(self) -> str:
        """Name and seed, for messages."""
        return self.name if self.seed is None else f"{self.name} seed {self.seed}"

    @property
    def folder(self) -> str:
        """Its folder below the study's."""
        seed = "" if self.seed is None else f" s{self.seed}"
        return f"cells/{self.system}-{slug(f'{slug(self.name, FOLDER_NAME)}{seed}', FOLDER_NAME)}"

    def answers_folder(self, answer: AnswerPlan) -> str:
        """Folder of one set of answers."""
        return f"{self.folder}/answers/{answer.id}"


@dataclass(frozen=True, slots=True)
class Plan:
    """All runs of a study, in the order in which they are done. `files` is None when unresolved."""

    study: Study
    files: BaseModelFiles | None
    runs: tuple[RunPlan, ...]

    def rows(self) -> list[PlanRow]:
        """One row per unit of work: adapters and sets of answers."""
        rows = []
        for run in self.runs:
            if run.kind == "trained":
                rows.append(plan_row(run, None))
            rows += [plan_row(run, answer) for answer in run.answers]
        return rows


def plan_row(run: RunPlan, answer: AnswerPlan | None, kind: str = "answer") -> PlanRow:
    """A unit of work as the store keeps it: an adapter (None), or a set of answers."""
    return PlanRow(
        kind=kind if answer else "train",
        id=answer.id if answer else run.system,
        system=run.system,
        folder=run.folder,
        cocktail=run.name,
        seed=run.seed,
        task=answer.task if answer else "",
        split=answer.split if answer else "",
        form=answer.form if answer else "",
        items=answer.items if answer else sum(row.rows_got for row in run.mix),
        tokens=answer.tokens if answer else run.tokens,
        items_digest=answer.items_digest if answer else "",
        origin=run.origin,
        system_kind=run.kind,
        ingredients=run.cocktail,
        note=run.note,
        lr=run.course.lr if run.course else None,
        strength=run.strength,
        scaled_from=run.scaled_from,
    )


def merged_runs(
    runs: Sequence[RunPlan], answers: Callable[[str], tuple[AnswerPlan, ...]]
) -> list[RunPlan]:
    """For each trained cocktail and seed the sum of its single tasks' adapters, weighed by rows.

    `answers`: of a system's id. Doses and other cells with a note have no merged system.

    Raises:
        SpecError: the design leaves out the single task of a cocktail.
    """
    plain = {(run.name, run.seed): run for run in runs if run.kind == "trained" and not run.note}
    merged = []
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
        weights = {(row.ingredient, run.seed): row.rows_got for row in run.mix}
        total = sum(weights.values())
        parts = tuple(
            Summand(plain[single].system, plain[single].folder, rows / total)
            for single, rows in weights.items()
        )
        resolved = parts and all(part.system for part in parts)
        key = {"parts": sorted([part.system, part.weight] for part in parts)}
        system = make_id("merged", key) if resolved else ""
        merged.append(
            RunPlan(
                system,
                "merged",
                run.cocktail,
                run.seed,
                answers=answers(system),
                note="merged",
                parts=parts,
            )
        )
    return merged


class Events:
    """A listener of a running study; this one does nothing. Nothing here changes a result."""

    def started(self, plan: Plan, todo: int, cost: float) -> None:
        """A study begins: `todo` runs are not finished; `cost` in tokens of forward pass."""

    def note(self, text: str) -> None:
        """Something worth a line: a unit given back, a file found broken."""

    def run_started(self, run: RunPlan) -> None:
        """A run begins or goes on."""

    def trained(self, run: RunPlan, step: TrainStep, steps: int, cost: float) -> None:
        """One optimiser step was made."""

    def answered(self, run: RunPlan, answer: AnswerPlan, cost: float) -> None:
        """One set of answers is kept."""

    def run_finished(self, run: RunPlan, seconds: float) -> None:
        """All units of a run are done."""

    def run_failed(self, run: RunPlan, error: str) -> None:
        """A run failed; the study goes on with the next."""
