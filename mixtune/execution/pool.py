"""Several processes on one study: each takes the next run that nobody has.

On a CPU a process per core with one thread each does more than one process with all cores (small
matrices, no barriers between threads), and a busy neighbour slows one run and not all.

Knows: processes, who is alive, passing events on. Does not know: what a run does.
"""

import multiprocessing
import os
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch

from mixtune.errors import RunFailed
from mixtune.events import Events, Silent
from mixtune.execution.local import Session, local_model
from mixtune.planning.plan import AnswerPlan, Plan, Planner, RunPlan
from mixtune.records import TrainStep
from mixtune.store import Store

POLL = 0.2
"""Seconds between two looks at whether the parent is alive."""

SHARE_OF_MEMORY = 0.5
COPIES = 8
"""Room for one worker, in sizes of the bfloat16 weights: the base in float32 takes two, optimiser
state and activations the rest."""


@dataclass(frozen=True)
class Work:
    """What a worker process needs: how to make its planner, the plan, the folder, its threads."""

    make_planner: Callable[[], Planner]
    plan: Plan
    folder: Path
    threads: int


def default_workers(weights_bytes: int, runs: int) -> int:
    """Worker processes for this machine: at most one per core and per run, as memory allows."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fit = int(memory * SHARE_OF_MEMORY / (COPIES * weights_bytes))
    return max(1, min(available_cores(), fit, runs))


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def run_pool(work: Work, workers: int, events: Events) -> list[RunPlan]:
    """Run a plan with worker processes; returns the runs that failed.

    The caller holds the store's lock, has saved the plan and has called `local.begin`.

    Raises:
        RunFailed: a worker died without saying why (out of memory, killed).
    """
    context = multiprocessing.get_context("spawn")
    messages: Queue[tuple[str, tuple[Any, ...]]] = context.Queue()
    processes = [
        context.Process(target=_work, args=(work, messages, os.getpid())) for _ in range(workers)
    ]
    for process in processes:
        process.start()
    failed: list[RunPlan] = []
    try:
        while True:
            alive = any(process.is_alive() for process in processes)
            if not _pass_on(messages, events, failed) and not alive:
                break
    finally:
        for process in processes:
            process.join(timeout=30)
            process.kill()
    codes = [process.exitcode for process in processes]
    if any(codes):
        raise RunFailed(
            f"worker processes ended with exit codes {codes} (-9: killed, often for want of "
            "memory: try --workers 1); finished work is kept, the same command goes on"
        )
    return failed


def _pass_on(
    messages: "Queue[tuple[str, tuple[Any, ...]]]", events: Events, failed: list[RunPlan]
) -> bool:
    """Hand one event on; False when none came for a while."""
    try:
        name, arguments = messages.get(timeout=POLL)
    except queue.Empty:
        return False
    getattr(events, name)(*arguments)
    if name == "run_failed":
        failed.append(arguments[0])
    return True


class _Sender(Silent):
    """Sends events to the parent process."""

    def __init__(self, messages: "Queue[tuple[str, tuple[Any, ...]]]") -> None:
        self._messages = messages

    def run_started(self, run: RunPlan, number: int, of: int) -> None:
        self._messages.put(("run_started", (run, number, of)))

    def trained(self, run: RunPlan, step: TrainStep, steps: int, cost: float) -> None:
        self._messages.put(("trained", (run, step, steps, cost)))

    def answered(self, run: RunPlan, answer: AnswerPlan, cost: float) -> None:
        self._messages.put(("answered", (run, answer, cost)))

    def run_finished(self, run: RunPlan, seconds: float) -> None:
        self._messages.put(("run_finished", (run, seconds)))

    def run_failed(self, run: RunPlan, error: str) -> None:
        self._messages.put(("run_failed", (run, error)))


def _work(work: Work, messages: "Queue[tuple[str, tuple[Any, ...]]]", parent: int) -> None:
    """A worker process, from start to end."""
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(work.threads)
    store = Store(work.folder)
    planner = work.make_planner()
    with store.working():
        session = Session(planner, store, lambda: local_model(planner), _Sender(messages))
        try:
            session.run(work.plan)
        except KeyboardInterrupt:
            return


def _leave_with(parent: int) -> None:
    """End this process at once when its parent is gone: nobody would hear of its work."""
    while os.getppid() == parent:
        time.sleep(POLL)
    os._exit(1)
