"""A study from its file to finished runs: base model, plan, lock, workers.

Knows: the order of these. Does not know: what the terminal shows, what a run does.
"""

from functools import partial
from pathlib import Path

from mixtune.engine.convert import prepare
from mixtune.events import Events
from mixtune.execution.local import begin
from mixtune.execution.pool import Work, available_cores, default_workers, run_pool
from mixtune.models.catalog import BaseModelFiles
from mixtune.planning.facts import facts_of
from mixtune.planning.plan import Planner, RunPlan
from mixtune.spec import Study, dump_study
from mixtune.store import Store
from mixtune.tasks.registry import Registry


def run_study(
    study: Study, data_dir: Path | None, runs_dir: Path, workers: int | None, events: Events
) -> list[RunPlan]:
    """Train and score what is missing or failed; returns the runs that failed.

    Raises:
        ModelError, DataError, SpecError: before anything is written.
        StoreError: the folder is in use, or its results would get other ids.
        RunFailed: a worker died.
    """
    events.note(f"base model {study.model}: looking for its weights")
    files = prepare(study.model)
    make_planner = partial(_planner, study, data_dir, files)
    planner = make_planner()
    plan = planner.plan()
    store = Store(runs_dir / study.name)
    with store.lock():
        store.save_plan(plan.rows(), dump_study(planner.study), facts_of(planner))
        todo = begin(plan, store, events)
        if not todo:
            return []
        # Threads follow from the whole plan, not from what is left of it: the number of threads
        # decides the order of sums, and a resumed study has to give the bits of an undisturbed one.
        full = workers or default_workers(_weights_bytes(files), len(plan.runs))
        threads = max(1, available_cores() // full)
        count = min(full, todo)
        events.note(f"worker processes: {count}, threads in each: {threads}")
        return run_pool(Work(make_planner, plan, store.folder, threads), count, events)


def _planner(study: Study, data_dir: Path | None, files: BaseModelFiles) -> Planner:
    return Planner(study, Registry.open(study.task_files, data_dir), files)


def _weights_bytes(files: BaseModelFiles) -> int:
    return sum(path.stat().st_size for path in files.folder.glob("*.safetensors"))
