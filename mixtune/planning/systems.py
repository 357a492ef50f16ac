"""Plans of `mixtune probe` and `mixtune strength`: more answers of a study's finished systems.

A system answers a probe as it answers any task. In addition the gold answers of probes and of the
general text are scored under the system and its base (`likelihood`). Does not know: torch, how a
likelihood is computed, which strength is best.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixtune.datasets.registry import Registry
from mixtune.errors import DataError, SpecError, did_you_mean
from mixtune.identity import make_id
from mixtune.models.files import BaseModelFiles
from mixtune.planning.cells import sorted_title
from mixtune.planning.corpus import general_split, probe_split
from mixtune.planning.plan import Planner
from mixtune.planning.runs import AnswerPlan, RunPlan, plan_row
from mixtune.planning.summary import content_of
from mixtune.records import Split
from mixtune.store.folder import PlanRow, Store
from mixtune.study.reading import dump_study, parse_study
from mixtune.study.spec import Study

STRENGTH = "strength"
"""Kind of the units at other strengths. Like probes they are in no table of results, and `mixtune
run` leaves them alone."""
STRENGTHS = (0.25, 0.5, 0.75, 1.0, 1.25)
"""Strengths that are tried where none are named; 1 is as the adapter was trained."""


@dataclass(frozen=True, slots=True)
class ExtraPlan:
    """A study's planner, the runs to be answered, and the rows of all units."""

    planner: Planner
    runs: tuple[RunPlan, ...]
    rows: tuple[PlanRow, ...]


class _Finished:
    """A stored study planned again: its units that are done and the runs that are trained."""

    def __init__(
        self, study: Study, store: Store, registry: Registry, files: BaseModelFiles | None
    ) -> None:
        self.planner = Planner(study, registry, files)
        plan = self.planner.plan()
        self._rows = plan.rows()
        content = {"content": content_of(self.planner)}
        store.preview(self._rows, dump_study(self.planner.study), content)
        self.done = {unit.id for unit in store.units().values() if unit.state == "done"}
        self.trained = [r for r in plan.runs if r.kind == "trained" and r.system in self.done]

    def extra(self, runs: Sequence[RunPlan], kind: str) -> ExtraPlan:
        """The plan with the units of further runs."""
        units = [plan_row(run, answer, kind) for run in runs for answer in run.answers]
        return ExtraPlan(self.planner, tuple(runs), (*self._rows, *units))


# ---- probes --------------------------------------------------------------------------------------


def plan_probes(
    study: Study,
    store: Store,
    registry: Registry,
    files: BaseModelFiles | None,
    only: Collection[str] = (),
) -> ExtraPlan:
    """Plan the probes of the base and of the finished adapters of a study.

    `study` has the probes; in all else it is the kept study that counts. `only`: names of cocktails
    and adapters, empty for all; the base is always among them.

    Raises:
        SpecError: no probes, nothing trained, or a name that no finished system has.
        DataError: a probe without items, or data that cannot be read.
        StoreError: no study there, or the probes would change what was trained on.
    """
    store.require()
    probed = _with_probes(study, store.read_value("study.yaml"))
    finished = _Finished(probed, store, registry, files)
    planner = finished.planner
    # A whole model has no base here that it could be compared with.
    external = [r for r in store.plan() if r.kind == "answer" and r.system_kind == "adapter"]
    unfinished = {row.system for row in external if row.id not in finished.done}
    adapters = {row.system: row for row in external if row.system not in unfinished}
    candidates = finished.trained + [
        planner.external("adapter", system, row.cocktail, row.origin)
        for system, row in adapters.items()
    ]
    chosen = [planner.baseline("base"), *_named(candidates, only)]
    runs = [replace(run, answers=_probe_answers(planner, run)) for run in chosen]
    return finished.extra(runs, "probe")


def _with_probes(study: Study, stored: Mapping[str, Any]) -> Study:
    """The study as it is kept, with the probes that the study file asks for now."""
    if not study.probes and study.general is None:
        raise SpecError(
            "the study has no probes",
            where=study.name,
            remedy="add probes: [mmlu, gsm8k] (scored tasks that it does not aim at), or general: "
            "alpaca (a dataset of general text)",
        )
    requested = study.model_dump(
        mode="json", include={"task_files", "model", "probes", "general", "gate"}
    )
    items = {"probe_items": study.evaluate.probe_items}
    return parse_study({**stored, **requested, "evaluate": {**stored["evaluate"], **items}})


def _named(candidates: Sequence[RunPlan], only: Collection[str]) -> list[RunPlan]:
    """The systems that were asked for by name; all where none was."""
    names = {run.name for run in candidates}
    requested = {name if name in names else sorted_title(name) for name in only}
    for name in sorted(requested - names):
        raise SpecError(
            "no finished system of this study that can be probed has that name",
            found=name,
            wanted=did_you_mean(name, names) if names else "nothing is finished yet",
            remedy="mixtune status STUDY.yaml lists them; only adapters can be held to the base",
        )
    if not candidates:
        raise SpecError("no system of this study is trained yet", remedy="mixtune run STUDY.yaml")
    return [run for run in candidates if not requested or run.name in requested]


def _probe_answers(planner: Planner, run: RunPlan) -> tuple[AnswerPlan, ...]:
    study, corpus = planner.study, planner.corpus
    splits = [(name, probe_split(corpus.datasets[name].task)) for name in study.probes]
    answers = planner.answers_to(splits, run.system, run.kind)
    if run.kind == "base":
        return answers
    if study.general is not None:
        splits.append((study.general, general_split(corpus.datasets[study.general])))
    return (*answers, *(_likelihood(planner, run, name, split) for name, split in splits))


def _likelihood(planner: Planner, run: RunPlan, name: str, split: Split) -> AnswerPlan:
    """Gold answers of a probe, read to a system and to its base."""
    assert planner.files is not None
    items = planner.corpus.items[name, split]
    if not items:
        raise DataError(
            "a probe has no items",
            where=f"{name}/{split}",
            found="every row is longer than train.max_length",
            remedy="raise train.max_length, or name another dataset",
        )
    tokens, digest = planner.item_facts(name, split)
    parts = {
        "system": run.system,
        "base": planner.files.digest,
        "task": name,
        "split": split,
        "prompt": planner.registry.get(name).prompt_version,
        "items": digest,
        "compute": planner.study.train.compute,
    }
    if planner.study.train.reasoning == "keep":
        parts["reasoning"] = "before the answer"
    key = make_id("probe", parts)
    return AnswerPlan(key, name, split, "likelihood", len(items), tokens, digest, 0)


# ---- strengths -----------------------------------------------------------------------------------


def at_strength(cocktail: str, strength: float) -> str:
    """Display name of a cocktail at a strength; unchanged at 1."""
    return cocktail if strength == 1 else f"{cocktail}@{strength:g}"


def stored_study(store: Store, study: Study) -> Study:
    """The study as stored, with the places of task files and base model as they are now."""
    raw = store.read_value("study.yaml")
    return parse_study(raw | {"task_files": study.task_files, "model": study.model})


def plan_strengths(
    study: Study,
    store: Store,
    registry: Registry,
    files: BaseModelFiles | None,
    strengths: Mapping[str, Sequence[float]],
    split: Split,
) -> ExtraPlan:
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
    finished = _Finished(study, store, registry, files)
    names = {run.name for run in finished.trained}
    for name in sorted(strengths.keys() - names):
        raise SpecError(
            "no trained cocktail of this study has that name",
            found=name,
            wanted=did_you_mean(name, names) if names else "nothing is trained yet",
            remedy="mixtune status STUDY.yaml lists them",
        )
    runs = []
    splits = [(task, split) for task in finished.planner.study.tasks]
    for run in finished.trained:
        for strength in strengths.get(run.name, ()):
            if strength == 1:
                continue
            system = make_id("strength", {"system": run.system, "strength": strength})
            scaled = RunPlan(
                system,
                "adapter",
                run.cocktail,
                run.seed,
                answers=finished.planner.answers_to(splits, system, "adapter"),
                label=at_strength(run.name, strength),
                origin=f"{run.name} at strength {strength:g}",
                of=run.folder,
                strength=strength,
                scaled_from=run.name,
            )
            runs.append(scaled)
    return finished.extra(runs, STRENGTH)
