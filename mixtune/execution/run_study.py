"""Run a study: base model, plan, lock, portions, workers, in this order.

Knows: the order. Does not know: what the terminal shows, what a run does.
"""

from pathlib import Path

from mixtune.datasets.registry import Registry
from mixtune.engine.convert import prepare
from mixtune.engine.rates import describe_rates, matmul_rates
from mixtune.execution.api import answer_remote
from mixtune.execution.assign import assign, portion_of, started
from mixtune.execution.bank_training import Head, heads
from mixtune.execution.extra_systems import answer_merged
from mixtune.execution.placement import place
from mixtune.execution.pool import run_pool, start_fork_server
from mixtune.execution.portion import Options, Setting
from mixtune.execution.worker import WorkerOptions, missing
from mixtune.planning.events import Events
from mixtune.planning.leaks import changed_by_tasks
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Plan, RunPlan
from mixtune.planning.summary import facts_of
from mixtune.store.folder import Store
from mixtune.study.reading import dump_study
from mixtune.study.spec import Study


def run_study(
    study: Study, data_dir: Path | None, runs_dir: Path, options: Options, events: Events
) -> list[RunPlan]:
    """Train and answer what is missing or failed; returns the runs that are not done.

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
        start_fork_server()
    planner = Planner(study, Registry.of(study, data_dir), files, store.selection())
    plan = planner.plan()
    with store.lock():
        changes = changed_by_tasks(store, planner.study, planner.data_rows())
        store.save_plan(plan.rows(), dump_study(planner.study), facts_of(planner), changes)
        for line in changes:
            events.note(line)
        with started(plan, store, events) as unfinished:
            if not unfinished:
                return []
            failed = answer_remote(plan, planner, store, events)
            if _has_work_for_workers(plan, store):
                failed += _run_in_workers(plan, planner, store, options, events)
            return failed + answer_merged(plan, planner, store, events)


def _run_in_workers(
    plan: Plan, planner: Planner, store: Store, options: Options, events: Events
) -> list[RunPlan]:
    """Train and answer in worker processes; returns the runs that failed."""
    assert plan.files is not None
    checkpoints = [head for head in heads(store).values() if isinstance(head, Head)]
    where = place(plan, options, checkpoints, events)
    compute = plan.study.train.compute
    events.note(describe_rates(matmul_rates(plan.files.folder, device=where.device), compute))
    setting = Setting.here(where.slots, where.threads, where.device, compute)
    assignments = assign(plan, store, setting, where.workers, events)
    workers = min(where.workers, len(assignments))
    events.note(f"worker processes: {workers}, threads in each: {where.threads}, on {where.device}")
    worker_options = WorkerOptions(
        setting, where.used, options.checkpoint_every, store.activations_folder
    )
    # Each is made when a worker is ready for it: rows in tokens take memory.
    portions = (
        portion_of(each, planner, store.undone(a.id for run in each.runs for a in run.answers))
        for each in assignments
    )
    return run_pool(portions, store, worker_options, workers, events)


def _has_work_for_workers(plan: Plan, store: Store) -> bool:
    """APIs and merged adapters are asked by this process."""
    units = store.units()
    return any(run.kind not in ("api", "merged") and missing(run, units) for run in plan.runs)
