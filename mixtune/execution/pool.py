"""Several processes on one study: each takes the next portion of work that nobody has.

Without a GPU they are forked from a process that does nothing but import what they need, which it
does while the study is planned. Where there is a GPU each is started afresh: once anything has
looked for GPUs, a forked process can use none.

Knows: processes, who is alive, passing events on. Does not know: what a portion does.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from mixtune.errors import MixtuneError, RunFailed, UserError
from mixtune.execution.assign import Portion, Setting
from mixtune.execution.worker import Session, local_model
from mixtune.identity import collect_rarely
from mixtune.planning.events import Events
from mixtune.planning.plan import Planner
from mixtune.planning.runs import Plan, RunPlan
from mixtune.signals import held_back
from mixtune.store.folder import Store

Message = tuple[str, tuple[Any, ...]]
"""Name of an event and its arguments; or "died" and the error that ended the worker."""

DEAF = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What a terminal or a closing session sends to all processes, and the parent answers for all."""

SOCKET = 70
"""Characters of the folder of temporary files up to which the system takes a fork server's socket
in it: 108 with what Python adds."""

PATIENCE = 10.0
"""Seconds that a worker has to end by itself once it is asked to."""


@dataclass(frozen=True)
class Work:
    """What a worker process needs; `slots`: adapters in its bank; `every`: between checkpoints."""

    make_planner: Callable[[], Planner]
    plan: Plan
    folder: Path
    portions: Sequence[Portion]
    setting: Setting
    slots: int
    every: float

    def session(self, events: Events) -> Session:
        """A session in this process, on the store's folder."""
        planner, store = self.make_planner(), Store(self.folder)
        load = partial(local_model, planner, self.slots, self.setting.device, store.states_folder)
        return Session(planner, store, load, events, self.setting, self.every)


def begin_imports() -> None:
    """Start to import what workers need, in the background; without a GPU only."""
    context = _context()
    if isinstance(context, ForkServerContext):
        context.set_forkserver_preload(["mixtune.execution.preload"])
        with _born_deaf(), _finding_what_this_finds():
            forkserver.ensure_running()


def _context() -> ForkServerContext | SpawnContext:
    if torch.cuda.is_available() or len(os.fsencode(tempfile.gettempdir())) > SOCKET:
        return multiprocessing.get_context("spawn")
    return multiprocessing.get_context("forkserver")


@contextmanager
def _finding_what_this_finds() -> Iterator[None]:
    """A process started in the body imports modules from where this one does.

    By itself it would look into the working directory first.
    """
    before = dict(os.environ)
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(wanted: Mapping[str, str]) -> None:
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    os.environ.update(wanted)


def run_pool(work: Work, workers: int, events: Events) -> list[RunPlan]:
    """Run a plan with worker processes; returns the runs that failed.

    The caller holds the store's lock, has saved the plan, is within `worker.begin` and has dealt
    the portions.

    Raises:
        RunFailed: a worker ended early; with its error, unless it was killed.
        UserError, OSError: what stopped a worker, such as a full disk.
    """
    context = _context()
    begin_imports()  # where the study looked finished at its start
    pipes = [context.Pipe(duplex=False) for _ in range(workers)]
    processes: list[BaseProcess] = []
    heard = _Heard(events)
    try:
        with _born_deaf():
            for _, sender in pipes:
                process = context.Process(target=_work, args=(work, sender, dict(os.environ)))
                process.start()
                processes.append(process)
        for _, sender in pipes:
            sender.close()  # the worker's end closes with the worker, and reading it then ends
        heard.listen([receiver for receiver, _ in pipes])
    finally:
        _stop(processes)
    _raise_early_end(heard.died, [process.exitcode for process in processes])
    return heard.failed


def _raise_early_end(died: Sequence[Exception], codes: Sequence[int | None]) -> None:
    """A worker's error is the study's: the user's own as it is, others and kills as RunFailed."""
    for error in died:
        if isinstance(error, UserError | OSError):
            raise error
    if died or any(codes):
        why = "; ".join(map(str, died)) or (
            f"exit codes {codes}; -9 means killed, often for want of memory: try --workers 1"
        )
        raise RunFailed(
            f"a worker process ended early: {why}\nfinished work is kept; the same command goes on"
        )


@contextmanager
def _born_deaf() -> Iterator[None]:
    """Processes started in the body never get the terminal's signals; they wait for this one.

    They would be hit while they import, print a traceback each, and not know what to give back.
    """
    resource_tracker.ensure_running()  # it unblocks signals when it starts, so it starts before
    with held_back():  # one that reaches another thread must not come before all are known
        before = signal.pthread_sigmask(signal.SIG_BLOCK, DEAF)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Heard:
    """What the workers say, passed on to the listener."""

    def __init__(self, events: Events) -> None:
        self.events = events
        self.failed: list[RunPlan] = []
        self.died: list[Exception] = []

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
                    self.died.append(arguments[0])
                    continue
                if name == "run_failed":
                    self.failed.append(arguments[0])
                getattr(self.events, name)(*arguments)


def _stop(processes: Sequence[BaseProcess]) -> None:
    """Ask the workers that are still there to stop; insist after a while, or at a second Ctrl-C."""
    # Only those alive: the number of one that has ended may be another process's by now.
    for process in filter(BaseProcess.is_alive, processes):
        process.terminate()
    deadline = time.monotonic() + PATIENCE
    try:
        for process in processes:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
    finally:
        for process in filter(BaseProcess.is_alive, processes):
            process.kill()
            process.join()


class _Sender(Events):
    """Sends the events of runs to the parent process."""

    def __init__(self, pipe: "Connection[Message, Any]") -> None:
        for name in ("note", "run_started", "trained", "answered", "run_finished", "run_failed"):
            setattr(self, name, partial(self._send, pipe, name))

    @staticmethod
    def _send(pipe: "Connection[Message, Any]", name: str, *arguments: object) -> None:
        pipe.send((name, arguments))


def _work(work: Work, pipe: "Connection[Message, Any]", environment: Mapping[str, str]) -> None:
    """A worker process, from start to end, under the parent's environment variables."""
    _set_environment(environment)
    signal.signal(signal.SIGTERM, _asked_to_stop)
    # By SIGTERM the parent asks. A fork server that was there before ours has not blocked the rest.
    signal.pthread_sigmask(signal.SIG_SETMASK, {*DEAF} - {signal.SIGTERM})
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    collect_rarely()
    torch.set_num_threads(work.setting.threads)
    try:
        with Store(work.folder).working():
            work.session(_Sender(pipe)).run(work.plan, work.portions)
    except BrokenPipeError:
        sys.exit(1)  # the parent is gone
    except (MixtuneError, OSError) as error:
        pipe.send(("died", (error,)))
        sys.exit(1)
    except Exception as error:
        pipe.send(("died", (RunFailed(f"{type(error).__name__}: {error}"),)))
        raise


def _asked_to_stop(number: int, frame: object) -> None:
    """The parent asks, or somebody with `kill`: units in work are given back on the way out.

    Once: a terminal's signal to the whole group comes here twice, and the second would cut off the
    giving back.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def _leave_with_parent() -> None:
    """End this process at once when its parent is gone: nobody would hear of its work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
