"""Systems that were made elsewhere, scored on a study's items: an adapter, or a whole model.

Knows: what tells an adapter from a model, how each becomes a system of the study. Does not know:
how answers are made or scored.

Units aside of a study's plan, done in this process: probes, and adapters at other strengths.

What was done before is left alone.

Knows: which systems are asked with which model. Does not know: what is asked, how answers are made.

Merged single tasks: their adapters added up, written, and asked like any other system.

Knows: which parts have to be there first. Does not know: what is merged with what weights, how
adapters are added.

A base model on this machine as a judge.

Knows: how a model becomes something that answers. Does not know: what it is asked.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from mixtune.datasets.registry import Registry
from mixtune.engine.adapter_format import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig
from mixtune.engine.convert import prepare
from mixtune.engine.decoder import Decoder
from mixtune.engine.merge import base_of, merge
from mixtune.engine.model import DTYPES, LocalModel
from mixtune.errors import ModelError, SpecError, StoreError
from mixtune.execution.assign import Portion, missing, title
from mixtune.execution.units import FAILURES, said
from mixtune.execution.worker import Session, begin, local_model
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
from mixtune.store.folder import PlanRow, Store
from mixtune.study.reading import dump_study, parse_study
from mixtune.study.spec import EvalSpec, Study, TrainSpec
from mixtune.tokens import Tokens

_FLOORS = {"majority": "", "base": ""}
"""Names that mean the study's own floors, whether it has them or not."""


def evaluate(
    study: Study, what: str, label: str, folders: tuple[Path | None, Path], events: Events
) -> list[RunPlan]:
    """Score an adapter or a model on a study's tasks; it stays a system of the study.

    Args:
        study: its tasks, items, base model and number format are used.
        what: a folder with a PEFT adapter; or a model: folder, .gguf file, catalogue name, hub id.
        label: what tables call it.
        folders: data directory (None: the hub) and runs directory.
        events: told of progress.

    Returns:
        The system, if it failed.

    Raises:
        ModelError: neither an adapter nor a model, or one that does not fit.
        SpecError: the label is taken by a system of the study.
        StoreError: the folder is in use, or holds other results under this study's name.
    """
    data_dir, runs_dir = folders
    store = Store(runs_dir / study.name)
    kept = store.plan() if store.exists else []
    # Where the study has been planned it is what is kept there, seeds added by hand and all; a
    # system brought in asks nothing of the study file.
    study = kept_study(store, study) if kept else study
    registry = Registry.of(study, data_dir)
    home = planner = Planner(study, registry, prepare(study.model))
    plan = home.plan().rows()
    adapter = local_path(what)
    if adapter is not None and (adapter / CONFIG_FILE).is_file():
        run, load = _adapter(home, adapter, label)
    else:
        planner, run = _model(home, registry, what, label)
        load = partial(local_model, planner)
    _refuse_taken(run, [*plan, *kept])
    units = store.units() if kept else {}
    rows = [plan_row(run, answer) for answer in run.answers]
    if all(row.id in units and units[row.id].state == "done" for row in rows):
        return []
    model = load()
    if adapter is not None and run.kind == "adapter":
        model.load_adapter(adapter)  # what does not fit is refused before it has a name here
    with store.lock():
        store.save_plan([*plan, *rows], dump_study(home.study), facts_of(home))
        own = Plan(study, planner.files, (run,))
        with begin(own, store, events):
            if adapter is not None and run.kind == "adapter":
                with store.new_folder(f"{run.folder}/adapter") as folder:
                    for name in (CONFIG_FILE, WEIGHTS_FILE):
                        shutil.copyfile(adapter / name, folder / name)
            session = Session(planner, store, lambda: model, events)
            return session.run(own, [Portion(run.system, (run,))])


def kept_study(store: Store, study: Study) -> Study:
    """The study as it is kept, its own files where the study file says that they are now."""
    raw = store.read_value("study.yaml")
    return parse_study(raw | {"task_files": study.task_files, "model": study.model})


def _adapter(
    planner: Planner, folder: Path, label: str
) -> tuple[RunPlan, Callable[[], LocalModel]]:
    """An adapter of the study's base model; refused where it says that it is for another."""
    assert planner.files is not None
    form = AdapterConfig.read(folder)
    base = base_of(folder)
    if base.digest not in (None, planner.files.digest):
        raise ModelError(
            "the adapter is for another base model",
            where=str(folder),
            found=f"{base.name}, digest {base.digest}",
            wanted=f"{planner.files.name}, digest {planner.files.digest}, the study's base",
            remedy="score it in a study of its own base model",
        )
    targets = (
        sorted(form.target_modules)
        if isinstance(form.target_modules, tuple)
        else form.target_modules
    )
    parts = {
        "model": planner.files.digest,
        "weights": sha256_of(folder / WEIGHTS_FILE),
        "form": [form.rank, form.alpha, targets, form.use_rslora],
    }
    origin = str(read_object(folder / CONFIG_FILE).get("base_model_name_or_path"))
    origin = f"adapter {folder.name}, made for {origin}"
    run = planner.brought_in("adapter", make_id("adapter", parts), label, origin)
    return run, partial(of_form, planner, form)


def _model(planner: Planner, registry: Registry, what: str, label: str) -> tuple[Planner, RunPlan]:
    """A whole model, with a tokenizer and a template of its own."""
    files = prepare(what)
    assert planner.files is not None
    if files.digest == planner.files.digest:
        raise SpecError(
            "this is the study's own base model",
            found=what,
            remedy="its scores are those of the system base",
        )
    own = Planner(planner.study.model_copy(update={"model": what}), registry, files)
    system = make_id("model", {"model": files.digest})
    return own, own.brought_in("model", system, label, f"model {files.name}, {files.source}")


def of_form(planner: Planner, form: AdapterConfig, device: str = "cpu") -> LocalModel:
    """The study's base model with one adapter of a form of its own, such as a merged one."""
    assert planner.files is not None
    assert planner.tokens is not None
    study = planner.study
    decoder = Decoder.load(planner.files.folder, DTYPES[study.train.compute], device)
    return LocalModel.with_adapters(decoder, form, planner.tokens, study.evaluate)


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
    others = [row.cocktail for row in rows if row.system == run.system]
    if others and run.name not in others:
        raise SpecError(
            "this system is scored already, under another name",
            found=run.name,
            wanted=others[0],
            remedy=f"mixtune compare STUDY.yaml {others[0]} OTHER shows it beside others",
        )


def probe(
    study: Study, folders: tuple[Path | None, Path], only: Sequence[str], events: Events
) -> list[RunPlan]:
    """Probe the base, and the adapters of a study that are there; returns the systems that failed.

    Args:
        study: with its probes.
        folders: data directory (None: the hub) and runs directory.
        only: names of the systems; empty for all.
        events: told of progress.

    Raises:
        ModelError, DataError, SpecError: before anything is asked.
        StoreError: there is no such study, the folder is in use, or what is asked is another study.
    """
    data_dir, runs_dir = folders
    store = Store(runs_dir / study.name)
    store.require()
    registry = Registry.of(study, data_dir)
    files = prepare(study.model)
    with store.lock():
        asked = plan_probes(study, store, registry, files, only)
        return _do(store, asked, events)


def strengths(
    study: Study,
    folders: tuple[Path | None, Path],
    wanted: Mapping[str, Sequence[float]],
    split: Split,
    events: Events,
) -> list[RunPlan]:
    """Let adapters of a study answer at other strengths; returns the systems that failed.

    Args:
        study: it is the kept one that counts.
        folders: data directory (None: the hub) and runs directory.
        wanted: cocktail → strengths.
        split: whose items are answered.
        events: told of progress.

    Raises:
        ModelError, DataError, SpecError, StoreError: as `probe`.
    """
    data_dir, runs_dir = folders
    store = Store(runs_dir / study.name)
    store.require()
    registry = Registry.of(study, data_dir)
    files = prepare(study.model)
    with store.lock():
        kept = kept_study(store, study)
        asked = plan_strengths(kept, store, (registry, files), wanted, split)
        return _do(store, asked, events)


def _do(store: Store, asked: Asked, events: Events) -> list[RunPlan]:
    """Take the units in, and do those that are missing; the caller holds the lock.

    The study's own systems share one model; an adapter of another form has one of its own.
    """
    planner = asked.planner
    store.save_plan(asked.rows, dump_study(planner.study), facts_of(planner))
    plan = Plan(planner.study, planner.files, asked.runs)
    failed: list[RunPlan] = []
    with begin(plan, store, events):
        brought = [run for run in plan.runs if run.kind == "adapter" and not run.of]
        own = [run for run in plan.runs if run not in brought]
        groups: list[tuple[list[RunPlan], Callable[[], LocalModel]]] = [
            (own, partial(local_model, planner, 1, _device()))
        ]
        for run in brought:
            form = AdapterConfig.read(store.folder / run.folder / "adapter")
            groups.append(([run], partial(of_form, planner, form, _device())))
        for runs, load in groups:
            session = Session(planner, store, load, events)
            failed += session.run(plan, [Portion(run.system, (run,)) for run in runs])
    return failed


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def answer_merged(plan: Plan, planner: Planner, store: Store, events: Events) -> list[RunPlan]:
    """Merge and ask what is missing; returns the runs that are not done.

    The caller holds the store's lock, has saved the plan, is within `worker.begin`, and has trained
    what can be trained.

    Raises:
        StoreError, OSError: results cannot be written.
    """
    units = store.units()
    todo = [run for run in plan.runs if run.kind == "merged" and missing(run, units)]
    lacking = [run for run in todo if any(units[part.system].state != "done" for part in run.parts)]
    for run in lacking:
        events.note(f"{title(run)}: waits for adapters that are not trained")
    written: dict[AdapterConfig, list[RunPlan]] = {}
    failed = list(lacking)
    for run in todo:
        if run in lacking:
            continue
        try:
            written.setdefault(_write(run, store), []).append(run)
        except (StoreError, OSError):
            raise
        except FAILURES as error:
            events.run_failed(run, said(error))
            failed.append(run)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for form, runs in written.items():
        load = partial(of_form, planner, form, device)
        failed += _ask(runs, plan, Session(planner, store, load, events))
    return failed


def _write(run: RunPlan, store: Store) -> AdapterConfig:
    """Write the sum of a run's parts; returns its form."""
    parts = [store.folder / part.folder / "adapter" for part in run.parts]
    with store.new_folder(f"{run.folder}/adapter") as folder:
        merge(parts, [part.weight for part in run.parts], folder)
    return AdapterConfig.read(store.folder / run.folder / "adapter")


def _ask(runs: Sequence[RunPlan], plan: Plan, session: Session) -> list[RunPlan]:
    return session.run(plan, [Portion(run.system, (run,)) for run in runs])


LONGEST_PROMPT = 16_384
"""Tokens of a question with both answers; the model's own context may be shorter."""


def local_judge(name: str) -> LocalModel:
    """A model of the catalogue, a hub id or a folder, without adapters; greedy.

    Raises:
        ModelError: it cannot be found or run.
    """
    files = prepare(name)
    evaluate = EvalSpec(max_prompt_length=LONGEST_PROMPT, batch_size=8)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LocalModel.load(
        files.folder, Tokens.load(files.folder), TrainSpec(rank=1), evaluate, device=device
    )
    model.use_base()
    model.system = make_id("judge", {"model": files.digest})
    return model
