"""Worker processes on one study: each gets the next portion as soon as it is ready for one.

Without a GPU they are forked from a server process that has only imported what they need, which it
does while the study is planned. With a GPU each is started afresh: once anything has looked for
GPUs, a forked process can use none. Python's ProcessPoolExecutor is not used: it cannot end its
workers with time to release their units, nor tell how each of them ended.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import compress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from mixtune.errors import MixtuneError, RunFailed, UserError
from mixtune.execution.bank_training import run_portion
from mixtune.execution.portion import Portion
from mixtune.execution.worker import Worker, WorkerOptions
from mixtune.identity import collect_rarely
from mixtune.planning.runs import Events, RunPlan
from mixtune.signals import TERMINATION_SIGNALS, defer_signals
from mixtune.store.folder import Store

SOCKET_FOLDER_LIMIT = 70
"""Characters of the temporary folder up to which the system takes a fork server's socket in it: 108
with what Python adds."""

SHUTDOWN_TIMEOUT = 10.0
"""Seconds that a worker has to end by itself once it is asked to."""


def start_fork_server() -> None:
    """Start to import what workers need, in the background; without a GPU only."""
    context = _context()
    if isinstance(context, ForkServerContext):
        context.set_forkserver_preload(["mixtune.execution.preload"])
        with _signals_blocked(), _same_import_path():
            forkserver.ensure_running()


def _context() -> ForkServerContext | SpawnContext:
    temporary = os.fsencode(tempfile.gettempdir())
    if torch.cuda.is_available() or len(temporary) > SOCKET_FOLDER_LIMIT:
        return multiprocessing.get_context("spawn")
    return multiprocessing.get_context("forkserver")


@contextmanager
def _same_import_path() -> Iterator[None]:
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


def _set_environment(variables: Mapping[str, str]) -> None:
    for name in os.environ.keys() - variables.keys():
        del os.environ[name]
    os.environ.update(variables)


def run_pool(
    portions: Iterator[Portion], store: Store, options: WorkerOptions, workers: int, events: Events
) -> list[RunPlan]:
    """Do portions, each made when a worker is ready for it; returns the runs that failed.

    The caller holds the store's lock and has entered `assign.started`.

    Raises:
        RunFailed: a worker ended early; with its error, unless it was killed.
        UserError, OSError: what stopped a worker, such as a full disk.
    """
    context = _context()
    start_fork_server()  # where the study looked finished at its start
    pipes = [context.Pipe() for _ in range(workers)]
    processes: list[BaseProcess] = []
    dispatcher = _Dispatcher(portions, store, events)
    try:
        with _signals_blocked():
            for _, end in pipes:
                arguments = (store.folder, options, end, dict(os.environ))
                process = context.Process(target=_work, args=arguments)
                process.start()
                processes.append(process)
        for _, end in pipes:
            end.close()  # the worker's end closes with the worker, and reading ours then ends
        dispatcher.serve([pipe for pipe, _ in pipes])
    finally:
        _stop(processes)
        store.drop_portions()
    # A worker without a next portion leaves nothing undone. Its exit code may be that of the fork
    # server, which somebody ended.
    working = [pipe not in dispatcher.dismissed for pipe, _ in pipes]
    codes = [process.exitcode for process in compress(processes, working)]
    _raise_early_end(dispatcher.errors, codes)
    return dispatcher.failed


def _raise_early_end(errors: Sequence[Exception], codes: Sequence[int | None]) -> None:
    """Raise a worker's error: the user's own as it is, others and kills as RunFailed."""
    for error in errors:
        if isinstance(error, UserError | OSError):
            raise error
    if errors or any(codes):
        reason = "; ".join(map(str, errors)) or (
            f"exit codes {codes}; -9 means killed, often for want of memory: try --workers 1"
        )
        raise RunFailed(
            f"a worker process ended early: {reason}\n"
            "finished work is kept; the same command goes on"
        )


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Start processes in the body without the terminal's signals; this process answers for them.

    They would be interrupted while they import, print a traceback each, and not know which units to
    release.
    """
    resource_tracker.ensure_running()  # it unblocks signals when it starts, so it starts before
    with defer_signals():  # one that reaches another thread must not come before all are known
        before = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINATION_SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Dispatcher:
    """Sends portions to workers that are ready, and passes their events on to the listener."""

    def __init__(self, portions: Iterator[Portion], store: Store, events: Events) -> None:
        self.failed: list[RunPlan] = []
        self.errors: list[Exception] = []
        self.dismissed: set[Connection] = set()
        """Pipes of workers that were ready when no portion was left."""
        self._portions = portions
        self._store = store
        self._events = events
        self._files: dict[Connection, Path] = {}

    def serve(self, pipes: list[Connection]) -> None:
        """Go on until every worker has closed its end."""
        while pipes:
            for pipe in wait(pipes):
                assert isinstance(pipe, Connection)
                try:
                    message = pipe.recv()
                except (EOFError, ConnectionResetError):
                    pipes.remove(pipe)
                else:
                    self._handle(pipe, *message)

    def _handle(self, pipe: Connection, name: str, arguments: tuple[Any, ...]) -> None:
        """`name`: "ready", "error" with the error that ended the worker, or an event."""
        if name == "ready":
            self._send_next(pipe)
        elif name == "error":
            self.errors += arguments
        else:
            if name == "run_failed":
                self.failed.append(arguments[0])
            getattr(self._events, name)(*arguments)

    def _send_next(self, pipe: Connection) -> None:
        """Send the file of the next portion, or None when there is none."""
        if pipe in self._files:
            self._files.pop(pipe).unlink(missing_ok=True)
        portion = next(self._portions, None)
        if portion is not None:
            self._files[pipe] = portion.write(self._store.portion_file(portion.name))
        else:
            self.dismissed.add(pipe)
        with suppress(BrokenPipeError, ConnectionResetError):  # it died; reading its pipe says so
            pipe.send(self._files.get(pipe))


def _stop(processes: Sequence[BaseProcess]) -> None:
    """Ask the workers that are alive to stop; kill them after a while, or at a second Ctrl-C."""
    # Only those alive: the number of one that has ended may be another process's by now.
    for process in filter(BaseProcess.is_alive, processes):
        process.terminate()
    deadline = time.monotonic() + SHUTDOWN_TIMEOUT
    try:
        for process in processes:
            process.join(timeout=max(0.0, deadline - time.monotonic()))
    finally:
        for process in filter(BaseProcess.is_alive, processes):
            process.kill()
            process.join()


# ---- in the worker ------------------------------------------------------------------------------


class _EventRelay(Events):
    """Sends the events of runs to the parent process."""

    def __init__(self, pipe: Connection) -> None:
        for name in ("note", "run_started", "trained", "answered", "run_finished", "run_failed"):
            setattr(self, name, lambda *arguments, name=name: pipe.send((name, arguments)))


def _work(
    folder: Path, options: WorkerOptions, pipe: Connection, environment: Mapping[str, str]
) -> None:
    """Run a worker process, from start to end, under the parent's environment variables."""
    _set_environment(environment)
    signal.signal(signal.SIGTERM, _exit_on_request)
    # The parent asks by SIGTERM. A fork server older than this run has not blocked the rest.
    signal.pthread_sigmask(signal.SIG_SETMASK, {*TERMINATION_SIGNALS} - {signal.SIGTERM})
    threading.Thread(target=_exit_when_parent_dies, daemon=True).start()
    collect_rarely()
    torch.set_num_threads(options.setting.threads)
    store = Store(folder)
    try:
        with store.working():
            worker = Worker(store, _EventRelay(pipe), options)
            for path in iter(partial(_next_portion, pipe), None):
                run_portion(worker, Portion.read(path))
    except (BrokenPipeError, EOFError):
        sys.exit(1)  # the parent is gone
    except (MixtuneError, OSError) as error:
        pipe.send(("error", (error,)))
        sys.exit(1)
    except Exception as error:
        pipe.send(("error", (RunFailed(f"{type(error).__name__}: {error}"),)))
        raise


def _next_portion(pipe: Connection) -> Path | None:
    pipe.send(("ready", ()))
    path: Path | None = pipe.recv()
    return path


def _exit_on_request(number: int, frame: object) -> None:
    """Exit and release running units on the way out, when the parent or `kill` asks.

    Once: a terminal's signal to the whole group comes here twice, and the second would interrupt
    the release.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(128 + number)


def _exit_when_parent_dies() -> None:
    """End this process at once when its parent is gone: no one would hear of its work."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
