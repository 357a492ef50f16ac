"""Several processes on one study: each takes the next run that nobody has.

On a CPU a process per core with one thread each does more than one process with all cores (small
matrices, no barriers between threads), and a busy neighbour slows one run and not all.

Knows: processes, who is alive, passing events on. Does not know: what a run does.
"""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from mixtune.errors import RunFailed
from mixtune.events import Events, Silent
from mixtune.execution.local import Session, local_model
from mixtune.planning.plan import AnswerPlan, Plan, Planner, RunPlan
from mixtune.records import TrainStep
from mixtune.store import Store

Message = tuple[str, tuple[Any, ...]]
"""Name of an event and its arguments; or "died" and an error."""

POLL = 0.2
"""Seconds between two looks at whether the parent is alive."""

PATIENCE = 10.0
"""Seconds that a worker has to end by itself once it is asked to."""

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
        RunFailed: a worker ended early; with its error, unless it was killed.
    """
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe(duplex=False) for _ in range(workers)]
    processes = [
        context.Process(target=_work, args=(work, sender, os.getpid())) for _, sender in pipes
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()  # the worker's end closes with the worker, and reading it then ends
    heard = _Heard(events)
    try:
        heard.listen([receiver for receiver, _ in pipes])
    finally:
        _stop(processes)
    codes = [process.exitcode for process in processes]
    if heard.died or any(codes):
        why = "; ".join(heard.died) or (
            f"exit codes {codes}; -9 means killed, often for want of memory: try --workers 1"
        )
        raise RunFailed(
            f"a worker process ended early: {why}\nfinished work is kept; the same command goes on"
        )
    return heard.failed


class _Heard:
    """What the workers say, passed on to the listener."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.failed: list[RunPlan] = []
        self.died: list[str] = []

    def listen(self, pipes: "list[Connection[Any, Message]]") -> None:
        """Pass messages on until every worker has closed its end."""
        while pipes:
            for pipe in wait(pipes):
                assert isinstance(pipe, Connection)
                try:
                    name, arguments = pipe.recv()
                except EOFError:
                    pipes.remove(pipe)
                    continue
                if name == "died":
                    self.died.append(str(arguments[0]))
                    continue
                if name == "run_failed":
                    self.failed.append(arguments[0])
                getattr(self.events, name)(*arguments)


def _stop(processes: Sequence[BaseProcess]) -> None:
    """Ask the workers that are still there to stop at a safe point; insist after a while."""
    for process in processes:
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, signal.SIGINT)
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(timeout=max(0.0, deadline - time.monotonic()))
        process.kill()
        process.join()


class _Sender(Silent):
    """Sends events to the parent process."""

    def __init__(self, pipe: "Connection[Message, Any]") -> None:
        self._pipe = pipe

    def run_started(self, run: RunPlan, number: int, of: int) -> None:
        self._pipe.send(("run_started", (run, number, of)))

    def trained(self, run: RunPlan, step: TrainStep, steps: int, cost: float) -> None:
        self._pipe.send(("trained", (run, step, steps, cost)))

    def answered(self, run: RunPlan, answer: AnswerPlan, cost: float) -> None:
        self._pipe.send(("answered", (run, answer, cost)))

    def run_finished(self, run: RunPlan, seconds: float) -> None:
        self._pipe.send(("run_finished", (run, seconds)))

    def run_failed(self, run: RunPlan, error: str) -> None:
        self._pipe.send(("run_failed", (run, error)))


def _work(work: Work, pipe: "Connection[Message, Any]", parent: int) -> None:
    """A worker process, from start to end."""
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    torch.set_num_threads(work.threads)
    store = Store(work.folder)
    try:
        planner = work.make_planner()
        with store.working():
            session = Session(planner, store, lambda: local_model(planner), _Sender(pipe))
            session.run(work.plan)
    except KeyboardInterrupt:
        return
    except Exception as error:
        pipe.send(("died", (f"{type(error).__name__}: {error}",)))
        raise


def _leave_with(parent: int) -> None:
    """End this process at once when its parent is gone: nobody would hear of its work."""
    while os.getppid() == parent:
        time.sleep(POLL)
    os._exit(1)
