"""Systems that this process answers: external and merged ones, probes and other strengths.

External systems were trained elsewhere: an adapter in PEFT's format, or a whole model. Merged ones
are weighted sums of trained adapters. What was answered before is left alone.
"""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from mixtune.datasets.registry import Registry
from mixtune.engine.adapter_format import CONFIG_FILE, WEIGHTS_FILE, AdapterConfig
from mixtune.engine.convert import prepare
from mixtune.engine.merge import base_of, merge
from mixtune.engine.model import LocalModel
from mixtune.errors import ModelError, SpecError, shorten
from mixtune.execution.assign import alone, portion_of, started
from mixtune.execution.bank_training import run_portion
from mixtune.execution.portion import Setting
from mixtune.execution.worker import Worker, WorkerOptions, fails_alone, missing
from mixtune.identity import make_id
from mixtune.models.catalog import local_path
from mixtune.models.files import (
    BaseModelFiles,
    check_unchanged,
    load_tokens,
    read_object,
    sha256_of,
)
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Events, Plan, RunPlan, plan_row
from mixtune.planning.summary import facts_of
from mixtune.planning.systems import ExtraPlan, stored_study
from mixtune.store.folder import Folders, PlanRow, Store
from mixtune.study.reading import dump_study
from mixtune.study.spec import EvalSpec, Study, TrainSpec
from mixtune.tokens.chat import special_texts, stored_template
from mixtune.tokens.vocabulary import vocabulary

JUDGE_PROMPT_LENGTH = 16_384
"""Tokens of a question with both answers; the model's own context may be shorter."""


def _answer_here(worker: Worker, planner: Planner, runs: Sequence[RunPlan]) -> list[RunPlan]:
    """Answer what is missing of systems, one after another; returns all those that failed.

    The caller has entered `started`. Systems that follow each other and whose adapters have the
    same configuration share a loaded model.
    """
    for run in runs:
        undone = worker.store.undone(answer.id for answer in run.answers)
        run_portion(worker, portion_of(alone(run), planner, undone))
    return worker.failed


def _worker(study: Study, store: Store, events: Events) -> Worker:
    setting = Setting.here(1, torch.get_num_threads(), _device(), study.train.compute)
    return Worker(store, events, WorkerOptions(setting))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


# ---- probes and strengths -----------------------------------------------------------------------


def answer_extra(
    study: Study,
    folders: Folders,
    plan: Callable[[Study, Store, Registry, BaseModelFiles], ExtraPlan],
    events: Events,
) -> list[RunPlan]:
    """Answer what is missing of extra units of a stored study; returns the systems that failed.

    `plan`: `plan_probes` or `plan_strengths`, which says what they are.

    Raises:
        ModelError, DataError, SpecError: before anything is asked.
        StoreError: there is no such study, the folder is in use, or it holds another study.
    """
    store = folders.store(study.name)
    store.require()
    registry, files = Registry.of(study, folders.data), prepare(study.model)
    with store.lock():
        extra = plan(study, store, registry, files)
        planner = extra.planner
        saved = store.save_plan(extra.rows, dump_study(planner.study), facts_of(planner))
        for line in saved:
            events.note(line)
        with started(Plan(planner.study, planner.files, extra.runs), store, events):
            return _answer_here(_worker(planner.study, store, events), planner, extra.runs)


# ---- merged adapters ----------------------------------------------------------------------------


def answer_merged(plan: Plan, planner: Planner, store: Store, events: Events) -> list[RunPlan]:
    """Merge and answer what is missing; returns the runs that are not done.

    The caller has entered `started` and has trained what can be trained.
    """
    units = store.units()
    unfinished = [run for run in plan.runs if run.kind == "merged" and missing(run, units)]
    worker = _worker(planner.study, store, events)
    waiting, written = [], []
    # Sums of equally many adapters have the same rank, and share a loaded model.
    for run in sorted(unfinished, key=lambda run: len(run.parts)):
        if any(units[part.system].state != "done" for part in run.parts):
            events.note(f"{run.title}: waits for adapters that are not trained")
            waiting.append(run)
            continue
        with fails_alone(run, worker.fail):
            parts = [store.folder / part.folder / "adapter" for part in run.parts]
            with store.new_folder(f"{run.folder}/adapter") as folder:
                merge(parts, [part.weight for part in run.parts], folder)
            written.append(run)
    return waiting + _answer_here(worker, planner, written)


# ---- external adapters and models ---------------------------------------------------------------


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
    planner = Planner(study, Registry.of(study, folders.data), prepare(study.model))
    planned = planner.plan().rows()
    adapter = local_path(source)
    if adapter is not None and (adapter / CONFIG_FILE).is_file():
        own, run = planner, _adapter(planner, adapter, label)
        _compare_base(adapter, planner, events)
    else:
        adapter, own = None, _own_planner(planner, source)
        run = _model(own, label)
    _refuse_taken(run, [*planned, *stored])
    answers = {answer.id for answer in run.answers}
    undone = store.undone(answers) if stored else answers
    if not undone:
        return []
    worker = _worker(study, store, events)
    portion = portion_of(alone(run), own, undone)
    # A model that cannot be loaded, or an adapter that does not fit, gets no name in the study.
    if adapter is None:
        worker.model(portion)
    else:
        worker.model(portion, AdapterConfig.read(adapter)).load_adapter(adapter)
    with store.lock():
        rows = [plan_row(run, answer) for answer in run.answers]
        saved = store.save_plan([*planned, *rows], dump_study(study), facts_of(planner))
        for line in saved:
            events.note(line)
        with started(Plan(study, own.files, (run,)), store, events):
            if adapter is not None:
                with store.new_folder(f"{run.folder}/adapter") as folder:
                    for name in (CONFIG_FILE, WEIGHTS_FILE):
                        shutil.copyfile(adapter / name, folder / name)
            run_portion(worker, portion)
    return worker.failed


def _adapter(planner: Planner, folder: Path, label: str) -> RunPlan:
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
    trained_for = str(read_object(folder / CONFIG_FILE).get("base_model_name_or_path"))
    origin = f"adapter {folder.name}, made for {trained_for}"
    return planner.external("adapter", make_id("adapter", parts), label, origin)


def _compare_base(folder: Path, planner: Planner, events: Events) -> None:
    """Refuse another chat template or end token than the base's; note what cannot be verified."""
    files = planner.files
    assert files is not None
    theirs, ours = _turn_format(folder), _turn_format(files.folder)
    # A file that says nothing about one of them contradicts nothing.
    different = [key for key in ours if theirs[key] and ours[key] and theirs[key] != ours[key]]
    if different:
        raise ModelError(
            f"the adapter comes with another {' and another '.join(different)} than the base model",
            where=str(folder),
            found="; ".join(shorten(theirs[key]) for key in different),
            wanted="; ".join(shorten(ours[key]) for key in different),
            remedy="make a study whose model is a copy of the base with the adapter's tokenizer "
            "files; if it was trained with the base's own, remove chat_template.jinja and "
            "tokenizer_config.json from its folder",
        )
    _compare_tokenizer(folder, files.folder)
    base = base_of(folder)
    if base.digest is None and base.name not in (files.name, files.source, str(files.folder)):
        events.note(
            f"{folder.name} names {base.name or 'no model'} as its base and states no digest; it "
            f"is scored on {files.name} ({files.source}). If they differ, its scores mean nothing"
        )


def _compare_tokenizer(folder: Path, base: Path) -> None:
    """Refuse an adapter whose tokenizer gives other ids than the base's: it learnt other tokens."""
    ours, theirs = (vocabulary(place / "tokenizer.json") for place in (base, folder))
    if ours is None:
        return
    added = read_object(folder / "added_tokens.json")
    other = theirs.differences(ours) if theirs else []
    other += [token for token, number in added.items() if ours.ids.get(token) != number]
    if other:
        raise ModelError(
            "the adapter comes with another tokenizer than the base model",
            where=str(folder),
            found=f"{len(other)} differences: {', '.join(map(shorten, other[:5]))}",
            wanted="the base's tokens with the base's ids",
            remedy="merge it into the base that it was trained on (PEFT's merge_and_unload, "
            "save_pretrained with its tokenizer) and score the merged model's folder",
        )


def _turn_format(folder: Path) -> dict[str, str]:
    config = read_object(folder / "tokenizer_config.json")
    template = stored_template(folder, config).rstrip("\n")
    return {"chat template": template, "eos_token": special_texts(config).get("eos_token", "")}


def _own_planner(planner: Planner, source: str) -> Planner:
    """The study with a whole model for its base, with a tokenizer and a template of its own."""
    files = prepare(source)
    assert planner.files is not None
    if files.digest == planner.files.digest:
        raise SpecError(
            "this is the study's own base model",
            found=source,
            remedy="its scores are those of the system base",
        )
    return Planner(planner.study.model_copy(update={"model": source}), planner.registry, files)


def _model(own: Planner, label: str) -> RunPlan:
    assert own.files is not None
    system = make_id("model", {"model": own.files.digest})
    return own.external("model", system, label, f"model {own.files.name}, {own.files.source}")


def _refuse_taken(run: RunPlan, rows: Sequence[PlanRow]) -> None:
    """One name, one system."""
    if not run.name.isprintable() or not 0 < len(run.name) <= 64:
        raise SpecError(
            "not a name", found=run.name, wanted="1 to 64 characters", remedy="give one with --name"
        )
    # The study's own floors have their names, whether they are in its plan or not.
    named = {row.cocktail: row.system for row in rows} | {"majority": "", "base": ""}
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
    """Load a model of the catalogue, a hub id or a folder as a judge, without adapters; greedy."""
    files = prepare(name)
    evaluate = EvalSpec(max_prompt_length=JUDGE_PROMPT_LENGTH, batch_size=8)
    model = LocalModel.load(
        files.folder, load_tokens(files), TrainSpec(rank=1), evaluate, device=_device()
    )
    check_unchanged(files)
    model.use_base()
    model.system = make_id("judge", {"model": files.digest})
    return model
