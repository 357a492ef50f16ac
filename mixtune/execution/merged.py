"""Merged single tasks: their adapters added up, written, and asked like any other system.

Knows: which parts have to be there first. Does not know: what is merged with what weights, how
adapters are added.
"""

from collections.abc import Sequence
from functools import partial

import torch

from mixtune.engine.form import Form
from mixtune.engine.merge import merge
from mixtune.errors import StoreError
from mixtune.events import Events
from mixtune.execution.brought import of_form
from mixtune.execution.deal import Portion, missing, title
from mixtune.execution.local import Session
from mixtune.execution.units import FAILURES, said
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Plan, RunPlan
from mixtune.store import Store


def answer_merged(plan: Plan, planner: Planner, store: Store, events: Events) -> list[RunPlan]:
    """Merge and ask what is missing; returns the runs that are not done.

    The caller holds the store's lock, has saved the plan, has called `local.begin`, and has trained
    what can be trained.

    Raises:
        StoreError, OSError: results cannot be written.
    """
    units = store.units()
    todo = [run for run in plan.runs if run.kind == "merged" and missing(run, units)]
    lacking = [run for run in todo if any(units[part.system].state != "done" for part in run.parts)]
    for run in lacking:
        events.note(f"{title(run)}: waits for adapters that are not trained")
    written: dict[Form, list[RunPlan]] = {}
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


def _write(run: RunPlan, store: Store) -> Form:
    """Write the sum of a run's parts; returns its form."""
    parts = [store.folder / part.folder / "adapter" for part in run.parts]
    with store.new_folder(f"{run.folder}/adapter") as folder:
        merge(parts, [part.weight for part in run.parts], folder)
    return Form.read(store.folder / run.folder / "adapter")


def _ask(runs: Sequence[RunPlan], plan: Plan, session: Session) -> list[RunPlan]:
    return session.run(plan, [Portion(run.system, (run,)) for run in runs])
