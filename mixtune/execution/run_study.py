"""Run a study: base model, plan, lock, place on this machine, portions, workers, in this order.

On a CPU, a process per core with one thread each does more than one process with all cores (small
matrices, no barriers between threads), and a busy neighbour slows one run and not all. An adapter
has its process for itself: sharing a pass with others gains nothing there. A GPU belongs to one
process, and many adapters side by side fill it.

All of it follows from the whole plan and not from its unfinished part: the number of threads
decides the order of sums, and a resumed study has to give the bits of an undisturbed one.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mixtune.datasets.registry import Registry
from mixtune.engine.batching import PASS_TOKENS
from mixtune.engine.convert import prepare
from mixtune.engine.decoder import LOGIT_ROWS
from mixtune.engine.rates import describe_rates, matmul_rates
from mixtune.errors import SpecError
from mixtune.execution.api import answer_remote
from mixtune.execution.assign import assign, portion_of, started
from mixtune.execution.bank_training import Head, heads
from mixtune.execution.extra_systems import answer_merged
from mixtune.execution.pool import run_pool, start_fork_server
from mixtune.execution.portion import Options, Setting
from mixtune.execution.worker import WorkerOptions, missing
from mixtune.models.memory import (
    BYTES_PER_PARAMETER,
    Load,
    Need,
    free_memory,
    gigabytes,
    largest,
    main_memory,
    need,
    shape_of,
)
from mixtune.planning.corpus import changed_by_tasks
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Events, Plan, RunPlan
from mixtune.planning.summary import facts_of
from mixtune.store.folder import Store
from mixtune.study.reading import dump_study
from mixtune.study.spec import Study

WORKERS_SHARE = 0.5
"""Of main memory that workers may take together; weights are counted as if in bfloat16."""

BANKS_SHARE = 0.9
"""Of free memory that banks may take together."""

MOST_SLOTS = 64
"""Adapters side by side that are chosen at most; more gain little and answer late."""


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
    units = store.units()
    if not units or any(unit.state != "done" for unit in units.values()):
        start_fork_server()
    planner = Planner(study, Registry.of(study, data_dir), files, store.selection())
    plan = planner.plan()
    with store.lock():
        changes = changed_by_tasks(store, planner.study, planner.leaks.data_rows())
        restored = store.save_plan(
            plan.rows(), dump_study(planner.study), facts_of(planner), changes
        )
        for line in [*restored, *changes]:
            events.note(line)
        with started(plan, store, events) as unfinished:
            if not unfinished:
                return []
            failed = answer_remote(plan, planner, store, events)
            units = store.units()
            # APIs and merged adapters are asked by this process.
            if any(r.kind not in ("api", "merged") and missing(r, units) for r in plan.runs):
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


# ---- placement ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Placement:
    """Device, processes and threads of a run.

    `slots`: of a bank, part of the setting that bits depend on; `used`: as many of them as a worker
    can fill.
    """

    device: str
    workers: int
    threads: int
    slots: int
    used: int


def place(plan: Plan, options: Options, checkpoints: Sequence[Head], events: Events) -> Placement:
    """Choose where a plan is computed; a note says how much memory that takes.

    `checkpoints`: of banks that may be resumed; the default for slots is theirs.

    Raises:
        SpecError: the bank that was asked for does not fit into free memory.
    """
    assert plan.files is not None
    cpu = not torch.cuda.is_available()
    workers = options.workers or 1
    if cpu and options.workers is None:
        weights = sum(path.stat().st_size for path in plan.files.folder.glob("*.safetensors"))
        local = sum(run.kind not in ("api", "merged") for run in plan.runs)
        workers = default_workers(weights, local)
    banks = _Banks(plan, workers, free_memory() if cpu else torch.cuda.mem_get_info()[0])
    if plan.study.train.method == "full":
        slots = 1
        if options.bank is not None and options.bank > 1:
            raise SpecError(
                "full fine-tuning trains one run at a time",
                found=f"--bank {options.bank}",
                remedy="--bank 1, or train.method: lora",
            )
    elif options.bank is not None:
        slots = options.bank
        banks.refuse_too_large(min(slots, banks.largest_useful))
    elif checkpoints:
        slots = int(checkpoints[0].setting["slots"])
    else:
        slots = 1 if cpu else banks.largest(min(MOST_SLOTS, banks.largest_useful))
    used = min(slots, banks.largest_useful)
    events.note(banks.note(used))
    threads = max(1, available_cores() // workers)
    return Placement("cpu" if cpu else "cuda", workers, threads, slots, used)


class _Banks:
    """Memory of a plan's banks, one in each worker, against what is free."""

    def __init__(self, plan: Plan, workers: int, free: int) -> None:
        assert plan.files is not None
        scheduled = [(run.tokens, run.course) for run in plan.runs if run.course is not None]
        trained = sum(run.kind == "trained" for run in plan.runs)
        self.workers, self.free = workers, free
        self.free_each = int(free * BANKS_SHARE) // workers
        self.largest_useful = max(1, -(-trained // workers))
        """Slots that a worker can fill."""
        self._train = plan.study.train
        self._shape = shape_of(plan.files.folder)
        self._load = Load(
            tokens=PASS_TOKENS,
            logits=LOGIT_ROWS,
            step=max((-(-tokens // length.steps) for tokens, length in scheduled), default=0),
            span=max((-(-tokens // length.examples) for tokens, length in scheduled), default=0),
        )

    def need(self, slots: int) -> Need:
        """Memory of a bank with this number of slots."""
        return need(self._shape, self._train, slots, self._load)

    def largest(self, most: int) -> int:
        """Slots of the largest bank that fits, from 1 to `most`."""
        return max(1, largest(self._shape, self._train, self._load, self.free_each, most))

    def refuse_too_large(self, slots: int) -> None:
        """One adapter at a time is never refused: there is no smaller bank."""
        needed = self.need(slots).total
        if slots == 1 or needed <= self.free_each:
            return
        fewer = ", or fewer --workers" if self.workers > 1 else ""
        raise SpecError(
            f"{self._title(slots)} does not fit into memory",
            found=f"about {gigabytes(needed * self.workers)}, estimated",
            wanted=f"at most {gigabytes(self.free_each * self.workers)} of the "
            f"{gigabytes(self.free)} that are free",
            remedy=f"--bank {self.largest(slots)}{fewer}; or end other programs",
        )

    def note(self, slots: int) -> str:
        """Size and memory of the banks in words."""
        each = " each" if self.workers > 1 else ""
        total = gigabytes(self.need(slots).total)
        return f"{self._title(slots)}: about {total}{each} of {gigabytes(self.free)} free"

    def _title(self, slots: int) -> str:
        processes = f" in each of {self.workers} processes" if self.workers > 1 else ""
        return f"bank of {slots} adapter{'s' if slots > 1 else ''}{processes}"


def default_workers(weights_bytes: int, runs: int) -> int:
    """Worker processes for this machine: at most one per core and per run, as memory allows."""
    each = weights_bytes / 2 * BYTES_PER_PARAMETER
    fit = int(main_memory() * WORKERS_SHARE / each)
    return max(1, min(available_cores(), fit, runs))


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
