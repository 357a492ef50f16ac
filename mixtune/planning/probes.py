"""Plan of `mixtune probe`: answers on the study's probes, and log-likelihoods of gold answers.

A system answers a probe as it answers any task, on its validation split. In addition the gold
answers of probes and of the general text are scored under the system and its base (`likelihood`).

Knows: which systems can be probed, ids. Does not know: torch, how a likelihood is computed.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mixtune.datasets.registry import Registry
from mixtune.errors import DataError, SpecError, did_you_mean
from mixtune.identity import make_id
from mixtune.models.files import BaseModelFiles
from mixtune.planning.corpus import general_split, probe_split
from mixtune.planning.names import answerable
from mixtune.planning.plan import Planner
from mixtune.planning.runs import AnswerPlan, RunPlan, plan_row
from mixtune.planning.summary import content_of
from mixtune.records import Split
from mixtune.store.folder import PlanRow, Store
from mixtune.study.design import sorted_title
from mixtune.study.reading import dump_study, parse_study
from mixtune.study.spec import Study

KIND = "probe"
"""Kind of the units: they are in no table of results, and `mixtune run` leaves them alone."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A study's planner, the runs to be answered, and the rows of all units."""

    planner: Planner
    runs: tuple[RunPlan, ...]
    rows: tuple[PlanRow, ...]


def plan_probes(
    study: Study,
    store: Store,
    registry: Registry,
    files: BaseModelFiles | None,
    only: Collection[str] = (),
) -> Asked:
    """Plan the probes of the base and of the finished adapters of a study.

    Args:
        study: with its probes; in all else it is the kept study that counts.
        store: the study's folder.
        registry: its tasks.
        files: its base model.
        only: names of cocktails and adapters; empty for all. The base is always among them.

    Raises:
        SpecError: no probes, nothing trained, or a name that no finished system has.
        DataError: a probe without items, or data that cannot be read.
        StoreError: no study there, or the probes would change what was trained on.
    """
    store.require()
    planner = Planner(_probed(study, store.read_value("study.yaml")), registry, files)
    planned = planner.plan()
    rows = planned.rows()
    store.preview(rows, dump_study(planner.study), {"content": content_of(planner)})
    done = {unit.id for unit in store.units().values() if unit.state == "done"}
    candidates = [run for run in planned.runs if run.kind == "trained" and run.system in done]
    candidates += _brought(planner, store.plan(), done)
    chosen = [planner.baseline("base"), *_named(candidates, only)]
    runs = tuple(replace(run, answers=_asked(planner, run)) for run in chosen)
    units = [replace(plan_row(run, answer), kind=KIND) for run in runs for answer in run.answers]
    return Asked(planner, runs, (*rows, *units))


def _probed(study: Study, stored: Mapping[str, Any]) -> Study:
    """The study as it is kept, with the probes that the study file asks for now."""
    if not study.probes and study.general is None:
        raise SpecError(
            "the study has no probes",
            where=study.name,
            remedy="add probes: [mmlu, gsm8k] (scored tasks that it does not aim at), or general: "
            "alpaca (a dataset of general text)",
        )
    requested = study.model_dump(mode="json")
    overrides = {
        key: requested[key] for key in ("task_files", "model", "probes", "general", "gate")
    }
    items = {"probe_items": study.evaluate.probe_items}
    return parse_study({**stored, **overrides, "evaluate": {**stored["evaluate"], **items}})


def _brought(planner: Planner, stored: Sequence[PlanRow], done: Collection[str]) -> list[RunPlan]:
    """Adapters that were brought in and are answered for; a whole model has no base here."""
    own = [row for row in stored if row.kind == "answer" and row.system_kind == "adapter"]
    half = {row.system for row in own if row.id not in done}
    named = {row.system: row for row in own if row.system not in half}
    return [
        planner.brought_in("adapter", system, row.cocktail, row.origin)
        for system, row in named.items()
    ]


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


def _asked(planner: Planner, run: RunPlan) -> tuple[AnswerPlan, ...]:
    study, registry = planner.study, planner.registry
    answers = [
        planner.answer(
            run.system, run.kind, registry.get(name), probe_split(registry.get(name)), form
        )
        for name in study.probes
        for form in study.evaluate.forms
        if answerable(registry.get(name), form, run.kind)
    ]
    if run.kind == "base":
        return tuple(answers)
    answers += [
        _reading(planner, run, name, probe_split(registry.get(name))) for name in study.probes
    ]
    if study.general is not None:
        split = general_split(planner.corpus.datasets[study.general])
        answers.append(_reading(planner, run, study.general, split))
    return tuple(answers)


def _reading(planner: Planner, run: RunPlan, name: str, split: Split) -> AnswerPlan:
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
    return AnswerPlan(
        make_id("probe", parts), name, split, "likelihood", len(items), tokens, digest, 0
    )
