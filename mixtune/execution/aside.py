"""Units aside of a study's plan, done in this process: probes, and adapters at other strengths.

What was done before is left alone.

Knows: which systems are asked with which model. Does not know: what is asked, how answers are made.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

from mixtune.engine.convert import prepare
from mixtune.engine.form import Form
from mixtune.engine.model import LocalModel
from mixtune.events import Events
from mixtune.execution.brought import kept_study, of_form
from mixtune.execution.deal import Portion
from mixtune.execution.local import Session, begin, local_model
from mixtune.planning.facts import facts_of
from mixtune.planning.probes import Asked, plan_probes
from mixtune.planning.runs import Plan, RunPlan
from mixtune.planning.strengths import plan_strengths
from mixtune.records import Split
from mixtune.spec import Study
from mixtune.store import Store
from mixtune.study_file import dump_study
from mixtune.tasks.registry import Registry


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
    begin(plan, store, events)
    brought = [run for run in plan.runs if run.kind == "adapter" and not run.of]
    own = [run for run in plan.runs if run not in brought]
    groups: list[tuple[list[RunPlan], Callable[[], LocalModel]]] = [
        (own, partial(local_model, planner, 1, _device()))
    ]
    for run in brought:
        form = Form.read(store.folder / run.folder / "adapter")
        groups.append(([run], partial(of_form, planner, form, _device())))
    failed: list[RunPlan] = []
    for runs, load in groups:
        session = Session(planner, store, load, events)
        failed += session.run(plan, [Portion(run.system, (run,)) for run in runs])
    return failed


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
