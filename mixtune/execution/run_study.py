"""A study from its file to finished runs: base model, plan, lock, portions, workers.

Knows: the order of these. Does not know: what the terminal shows, what a run does.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from mixtune.datasets.registry import Registry
from mixtune.engine.convert import prepare
from mixtune.engine.rates import describe_rates, matmul_rates
from mixtune.execution.api import answer_remote
from mixtune.execution.assign import Setting, deal, heads, missing
from mixtune.execution.checkpoint import Head
from mixtune.execution.extra_systems import answer_merged
from mixtune.execution.options import Options
from mixtune.execution.placement import place
from mixtune.execution.pool import Work, begin_imports, run_pool
from mixtune.execution.worker import begin
from mixtune.models.files import BaseModelFiles
from mixtune.planning.events import Events
from mixtune.planning.leaks import changed_by_tasks
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Plan, RunPlan
from mixtune.planning.summary import facts_of
from mixtune.records import Selection
from mixtune.store.folder import Store
from mixtune.store.selection import read_selection
from mixtune.study.reading import dump_study
from mixtune.study.spec import Study


def run_study(
    study: Study, data_dir: Path | None, runs_dir: Path, options: Options, events: Events
) -> list[RunPlan]:
    """Train and score what is missing or failed; returns the runs that are not done.

    Raises:
        ModelError, DataError, SpecError: before anything is trained.
        StoreError: the folder is in use, or its results would get other ids.
        RunFailed: a worker died.
    """
    events.note(f"base model {study.model}: looking for its weights")
    files = prepare(study.model)
    store = Store(runs_dir / study.name)
    units = store.units().values()
    if not units or any(unit.state != "done" for unit in units):
        begin_imports()
    make_planner = partial(_planner, study, data_dir, files, read_selection(store))
    planner = make_planner()
    plan = planner.plan()
    with store.lock():
        why = changed_by_tasks(store, planner.study, planner.data_rows())
        store.save_plan(plan.rows(), dump_study(planner.study), facts_of(planner), why)
        for line in why:
            events.note(line)
        with begin(plan, store, events) as unfinished:
            if not unfinished:
                return []
            failed = answer_remote(plan, planner, store, events)
            if _left(plan, store):
                failed += _in_workers(make_planner, plan, store, options, events)
            return failed + answer_merged(plan, planner, store, events)


def _in_workers(
    make_planner: Callable[[], Planner], plan: Plan, store: Store, options: Options, events: Events
) -> list[RunPlan]:
    """Train and answer in processes of their own; returns the runs that failed."""
    assert plan.files is not None
    kept = [head for head in heads(store).values() if isinstance(head, Head)]
    where = place(plan, options, kept, events)
    rates = matmul_rates(plan.files.folder, device=where.device)
    events.note(describe_rates(rates, plan.study.train.compute))
    setting = Setting.here(where.slots, where.threads, where.device, plan.study.train.compute)
    portions = deal(plan, store, setting, where.workers, events)
    count = min(where.workers, len(portions))
    events.note(f"worker processes: {count}, threads in each: {where.threads}, on {where.device}")
    work = Work(
        make_planner,
        plan,
        store.folder,
        portions,
        setting,
        where.used,
        options.checkpoint_every,
    )
    return run_pool(work, count, events)


def _left(plan: Plan, store: Store) -> bool:
    """Whether anything is left for workers: APIs and merged adapters are asked by this process."""
    units = store.units()
    return any(run.kind not in ("api", "merged") and missing(run, units) for run in plan.runs)


def _planner(
    study: Study, data_dir: Path | None, files: BaseModelFiles, selection: Selection | None
) -> Planner:
    return Planner(study, Registry.of(study, data_dir), files, selection)
