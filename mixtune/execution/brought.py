"""Systems that were made elsewhere, scored on a study's items: an adapter, or a whole model.

Knows: what tells an adapter from a model, how each becomes a system of the study. Does not know:
how answers are made or scored.
"""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mixtune.engine.convert import prepare
from mixtune.engine.forward import Decoder
from mixtune.engine.lora import CONFIG_FILE, WEIGHTS_FILE, Form
from mixtune.engine.model import DTYPES, LocalModel
from mixtune.errors import SpecError
from mixtune.events import Events
from mixtune.execution.local import Session, begin
from mixtune.execution.start import facts_of
from mixtune.identity import make_id
from mixtune.models.files import read_object, sha256_of
from mixtune.planning.plan import Plan, Planner, RunPlan, plan_row
from mixtune.spec import Study, dump_study
from mixtune.store import Store, slug
from mixtune.tasks.registry import Registry


def evaluate(
    study: Study, what: str, label: str | None, folders: tuple[Path | None, Path], events: Events
) -> list[RunPlan]:
    """Score an adapter or a model on a study's tasks; it stays a system of the study.

    Args:
        study: its tasks, items, base model and number format are used.
        what: a folder with a PEFT adapter; or a model: folder, .gguf file, catalogue name, hub id.
        label: what tables call it; by default the folder's name.
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
    files = prepare(study.model)
    registry = Registry.open(study.task_files, data_dir)
    planner = Planner(study, registry, files)
    plan = planner.plan()
    name = label or slug(Path(what).resolve().name)
    _refuse_taken(name, plan)
    adapter = Path(what).expanduser()
    if (adapter / CONFIG_FILE).is_file():
        run, load = _adapter(planner, adapter, name)
    else:
        planner, run = _model(planner, registry, what, name)
        load = partial(_load, planner, Form(1, 1.0))
    store = Store(runs_dir / study.name)
    with store.lock():
        rows = [*plan.rows(), *(plan_row(run, answer) for answer in run.answers)]
        store.save_plan(rows, dump_study(planner.study), facts_of(planner))
        own = Plan(study, files, (run,))
        if not begin(own, store, events):
            return []
        if run.kind == "adapter":
            with store.new_folder(f"{run.folder}/adapter") as folder:
                _copy(adapter, folder)
        return Session(planner, store, load, events).run(own)


def _adapter(
    planner: Planner, folder: Path, label: str
) -> tuple[RunPlan, Callable[[], LocalModel]]:
    """An adapter of the study's base model."""
    assert planner.files is not None
    form = Form.read(folder)
    parts = {
        "model": planner.files.digest,
        "weights": sha256_of(folder / WEIGHTS_FILE),
        "form": [form.rank, form.alpha, form.targets, form.rslora],
    }
    origin = str(read_object(folder / CONFIG_FILE).get("base_model_name_or_path"))
    origin = f"adapter {folder.name}, made for {origin}"
    run = planner.brought_in("adapter", make_id("adapter", parts), label, origin)
    return run, partial(_load, planner, form)


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


def _load(planner: Planner, form: Form) -> LocalModel:
    assert planner.files is not None
    assert planner.tokens is not None
    study = planner.study
    decoder = Decoder.load(planner.files.folder, DTYPES[study.train.compute], "cpu")
    return LocalModel.adapted(decoder, form, planner.tokens, study.evaluate)


def _copy(adapter: Path, target: Path) -> None:
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        shutil.copyfile(adapter / name, target / name)


def _refuse_taken(label: str, plan: Plan) -> None:
    taken = {run.name for run in plan.runs}
    if label in taken or not label:
        raise SpecError(
            "a system of the study has this name",
            found=label,
            wanted=f"a name that is none of {', '.join(sorted(taken))}",
            remedy="give one with --name",
        )
