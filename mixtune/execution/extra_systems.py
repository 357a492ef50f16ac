"""Systems that this process answers: external and merged ones, probes and other strengths.

External systems were trained elsewhere: an adapter in PEFT's format, or a whole model. Merged ones
are weighted sums of trained adapters. What was answered before is left alone.

Knows: how each kind becomes a system of the study, what it needs before it can answer. Does not
know: how answers are made or scored.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mixtune.datasets.registry import Registry
from mixtune.engine.adapter_format import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig
from mixtune.engine.convert import prepare
from mixtune.engine.merge import base_of, merge
from mixtune.engine.model import LocalModel
from mixtune.errors import ModelError, SpecError, StoreError
from mixtune.execution.assign import alone, portion_of
from mixtune.execution.bank_training import run_portion
from mixtune.execution.options import Setting
from mixtune.execution.units import FAILURES, error_text, missing, started
from mixtune.execution.worker import Worker, WorkerOptions
from mixtune.identity import make_id
from mixtune.models.catalog import local_path
from mixtune.models.files import read_object, sha256_of
from mixtune.planning.events import Events
from mixtune.planning.plan import Planner
from mixtune.planning.probes import Asked, plan_probes
from mixtune.planning.runs import Plan, RunPlan, plan_row
from mixtune.planning.strengths import plan_strengths
from mixtune.planning.summary import facts_of
from mixtune.records import Split
from mixtune.store.folder import Folders, PlanRow, Store
from mixtune.study.reading import dump_study, parse_study
from mixtune.study.spec import EvalSpec, Study, TrainSpec
from mixtune.tokens import Tokens

_FLOORS = {"majority": "", "base": ""}
"""Names of the study's own floors, which no other system may have."""

JUDGE_PROMPT_LENGTH = 16_384
"""Tokens of a question with both answers; the model's own context may be shorter."""


def _answer_here(
    runs: Sequence[RunPlan], planner: Planner, store: Store, events: Events
) -> list[RunPlan]:
    """Answer what is missing of systems, one after another; returns those that failed.

    The caller has entered `units.started`. Systems that follow each other and whose adapters have
    the same configuration share a loaded model.
    """
    worker = _worker(planner.study, store, events)
    for run in runs:
        undone = store.undone(answer.id for answer in run.answers)
        run_portion(worker, portion_of(alone(run), planner, undone))
    return worker.failed


def _worker(study: Study, store: Store, events: Events) -> Worker:
    setting = Setting.here(1, torch.get_num_threads(), _device(), study.train.compute)
    return Worker(store, events, WorkerOptions(setting))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


# ---- probes and strengths -----------------------------------------------------------------------


def probe(study: Study, folders: Folders, only: Sequence[str], events: Events) -> list[RunPlan]:
    """Probe the base, and a study's adapters that are trained; returns the systems that failed.

    Args:
        study: with its probes.
        folders: of data and runs.
        only: names of the systems; empty for all.
        events: listener.

    Raises:
        ModelError, DataError, SpecError: before anything is asked.
        StoreError: there is no such study, the folder is in use, or it holds another study.
    """
    store = folders.store(study.name)
    store.require()
    registry, files = Registry.of(study, folders.data), prepare(study.model)
    with store.lock():
        return _answer_extra(plan_probes(study, store, registry, files, only), store, events)


def strengths(
    study: Study,
    folders: Folders,
    by_cocktail: Mapping[str, Sequence[float]],
    split: Split,
    events: Events,
) -> list[RunPlan]:
    """Let adapters of a study answer at other strengths; returns the systems that failed.

    Args:
        study: the stored one counts.
        folders: of data and runs.
        by_cocktail: cocktail → strengths.
        split: whose items are answered.
        events: listener.

    Raises:
        ModelError, DataError, SpecError, StoreError: as `probe`.
    """
    store = folders.store(study.name)
    store.require()
    registry, files = Registry.of(study, folders.data), prepare(study.model)
    with store.lock():
        stored = stored_study(store, study)
        extra = plan_strengths(stored, store, registry, files, by_cocktail, split)
        return _answer_extra(extra, store, events)


def _answer_extra(extra: Asked, store: Store, events: Events) -> list[RunPlan]:
    """Save the plan of extra units and do those that are missing; the caller holds the lock."""
    planner = extra.planner
    store.save_plan(extra.rows, dump_study(planner.study), facts_of(planner))
    plan = Plan(planner.study, planner.files, extra.runs)
    with started(plan, store, events):
        return _answer_here(plan.runs, planner, store, events)


def stored_study(store: Store, study: Study) -> Study:
    """The study as stored, with the places of task files and base model as they are now."""
    raw = store.read_value("study.yaml")
    return parse_study(raw | {"task_files": study.task_files, "model": study.model})


# ---- merged adapters ----------------------------------------------------------------------------


def answer_merged(plan: Plan, planner: Planner, store: Store, events: Events) -> list[RunPlan]:
    """Merge and answer what is missing; returns the runs that are not done.

    The caller has entered `units.started` and has trained what can be trained.

    Raises:
        StoreError, OSError: results cannot be written.
    """
    units = store.units()
    unfinished = [run for run in plan.runs if run.kind == "merged" and missing(run, units)]
    failed, written = [], []
    # Sums of equally many adapters have the same rank, and share a loaded model.
    for run in sorted(unfinished, key=lambda run: len(run.parts)):
        if any(units[part.system].state != "done" for part in run.parts):
            events.note(f"{run.title}: waits for adapters that are not trained")
            failed.append(run)
            continue
        try:
            _write_merged(run, store)
        except (StoreError, OSError):
            raise
        except FAILURES as error:
            events.run_failed(run, error_text(error))
            failed.append(run)
        else:
            written.append(run)
    return failed + _answer_here(written, planner, store, events)


def _write_merged(run: RunPlan, store: Store) -> None:
    parts = [store.folder / part.folder / "adapter" for part in run.parts]
    with store.new_folder(f"{run.folder}/adapter") as folder:
        merge(parts, [part.weight for part in run.parts], folder)


# ---- external adapters and models ---------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _External:
    """A system trained elsewhere; `planner` has its own base model where it is a whole model."""

    run: RunPlan
    planner: Planner
    adapter: Path | None


def evaluate(
    study: Study, source: str, label: str, folders: Folders, events: Events
) -> list[RunPlan]:
    """Answer a study's items with an adapter or a model, which stays a system of the study.

    Args:
        study: its tasks, items, base model and number format are used.
        source: a folder with a PEFT adapter; or a model: folder, .gguf file, catalogue name, hub
            id.
        label: its name in tables.
        folders: of data and runs.
        events: listener.

    Returns:
        The system, if it failed.

    Raises:
        ModelError: neither an adapter nor a model, or one that does not fit.
        SpecError: the label is taken by a system of the study.
        StoreError: the folder is in use, or holds other results under this study's name.
    """
    store = folders.store(study.name)
    stored = store.plan() if store.exists else []
    # A planned study counts as it is stored, with seeds added on the command line: an external
    # system asks nothing of the study file.
    study = stored_study(store, study) if stored else study
    registry = Registry.of(study, folders.data)
    planner = Planner(study, registry, prepare(study.model))
    planned = planner.plan().rows()
    external = _external(planner, registry, source, label)
    run = external.run
    _refuse_taken(run, [*planned, *stored])
    units = store.units() if stored else {}
    undone = {a.id for a in run.answers if a.id not in units or units[a.id].state != "done"}
    if not undone:
        return []
    worker = _worker(study, store, events)
    portion = portion_of(alone(run), external.planner, undone)
    # A model that cannot be loaded, or an adapter that does not fit, gets no name in the study.
    config = None if external.adapter is None else AdapterConfig.read(external.adapter)
    model = worker.model(portion, config)
    if external.adapter is not None:
        model.load_adapter(external.adapter)
    with store.lock():
        rows = [plan_row(run, answer) for answer in run.answers]
        store.save_plan([*planned, *rows], dump_study(study), facts_of(planner))
        with started(Plan(study, external.planner.files, (run,)), store, events):
            if external.adapter is not None:
                with store.new_folder(f"{run.folder}/adapter") as folder:
                    for name in (CONFIG_FILE, WEIGHTS_FILE):
                        shutil.copyfile(external.adapter / name, folder / name)
            run_portion(worker, portion)
    return worker.failed


def _external(planner: Planner, registry: Registry, source: str, label: str) -> _External:
    folder = local_path(source)
    if folder is not None and (folder / CONFIG_FILE).is_file():
        return _adapter(planner, folder, label)
    return _model(planner, registry, source, label)


def _adapter(planner: Planner, folder: Path, label: str) -> _External:
    """An adapter of the study's base model; refused where it names another one."""
    assert planner.files is not None
    config = AdapterConfig.read(folder)
    base = base_of(folder)
    if base.digest not in (None, planner.files.digest):
        raise ModelError(
            "the adapter is for another base model",
            where=str(folder),
            found=f"{base.name}, digest {base.digest}",
            wanted=f"{planner.files.name}, digest {planner.files.digest}, the study's base",
            remedy="score it in a study of its own base model",
        )
    modules = config.target_modules
    targets = sorted(modules) if isinstance(modules, tuple) else modules
    parts = {
        "model": planner.files.digest,
        "weights": sha256_of(folder / WEIGHTS_FILE),
        "form": [config.rank, config.alpha, targets, config.use_rslora],
    }
    made_for = str(read_object(folder / CONFIG_FILE).get("base_model_name_or_path"))
    origin = f"adapter {folder.name}, made for {made_for}"
    run = planner.brought_in("adapter", make_id("adapter", parts), label, origin)
    return _External(run, planner, folder)


def _model(planner: Planner, registry: Registry, source: str, label: str) -> _External:
    """A whole model, with a tokenizer and a template of its own."""
    files = prepare(source)
    assert planner.files is not None
    if files.digest == planner.files.digest:
        raise SpecError(
            "this is the study's own base model",
            found=source,
            remedy="its scores are those of the system base",
        )
    own = Planner(planner.study.model_copy(update={"model": source}), registry, files)
    system = make_id("model", {"model": files.digest})
    run = own.brought_in("model", system, label, f"model {files.name}, {files.source}")
    return _External(run, own, None)


def _refuse_taken(run: RunPlan, rows: Sequence[PlanRow]) -> None:
    """One name, one system."""
    if not run.name.isprintable() or not 0 < len(run.name) <= 64:
        raise SpecError(
            "not a name", found=run.name, wanted="1 to 64 characters", remedy="give one with --name"
        )
    named = {row.cocktail: row.system for row in rows} | _FLOORS
    if named.get(run.name, run.system) != run.system:
        raise SpecError(
            "another system of the study has this name",
            found=run.name,
            wanted=f"a name that is none of {', '.join(sorted(named))}",
            remedy="give one with --name",
        )
    names = [row.cocktail for row in rows if row.system == run.system]
    if names and run.name not in names:
        raise SpecError(
            "this system is scored already, under another name",
            found=run.name,
            wanted=names[0],
            remedy=f"mixtune compare STUDY.yaml {names[0]} OTHER shows it beside others",
        )


# ---- judge --------------------------------------------------------------------------------------


def local_judge(name: str) -> LocalModel:
    """Load a model of the catalogue, a hub id or a folder as a judge, without adapters; greedy.

    Raises:
        ModelError: it cannot be found or run.
    """
    files = prepare(name)
    evaluate = EvalSpec(max_prompt_length=JUDGE_PROMPT_LENGTH, batch_size=8)
    model = LocalModel.load(
        files.folder, Tokens.load(files.folder), TrainSpec(rank=1), evaluate, device=_device()
    )
    model.use_base()
    model.system = make_id("judge", {"model": files.digest})
    return model
