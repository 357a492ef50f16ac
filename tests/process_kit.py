"""`mixtune` in real processes that import nothing: each is forked from a warm one, and so is its
own fork server.

Knows: how they are started, their streams, signals, exit codes; a kill is a kill. Does not know:
the way from a shell, imports included, for which tests start `python`.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from multiprocessing import forkserver, util
from pathlib import Path

WARM = ["mixtune.cli", "mixtune.execution.preload"]


class Command:
    """A command in a process of its own; what it prints is kept in files."""

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        environment: Mapping[str, str],
        before: Callable[[], object] = int,
    ) -> None:
        """Start it in `folder`; the process calls `before` first."""
        self._streams = [_empty_file(), _empty_file()]
        self._printed: list[str] = []
        self._process = _warm().Process(
            target=_run, args=(folder, arguments, dict(environment), self._streams, before)
        )
        self._process.start()
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float = 60) -> int:
        """Wait for its end; returns the exit code.

        Raises:
            TimeoutExpired: it takes longer.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("mixtune", timeout)
        while self._streams:
            path = self._streams.pop(0)
            self._printed.append(path.read_text(encoding="utf-8"))
            path.unlink()
        return self._process.exitcode

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Wait for its end; returns standard output and standard error."""
        self.wait(timeout)
        out, err = self._printed
        return out, err

    def send_signal(self, number: int) -> None:
        if self._process.is_alive():
            os.kill(self.pid, number)


def _empty_file() -> Path:
    descriptor, path = tempfile.mkstemp()
    os.close(descriptor)
    return Path(path)


def _warm() -> multiprocessing.context.ForkServerContext:
    """The context whose server has imported everything, started once in each test process."""
    server = forkserver._forkserver
    if server._forkserver_pid is None or server._forkserver_pid not in _warm_servers:
        server._stop()
        server.set_forkserver_preload(WARM)
        server.ensure_running()
        _warm_servers.add(server._forkserver_pid)
    return multiprocessing.get_context("forkserver")


_warm_servers: set[int] = set()


def _run(
    folder: Path,
    arguments: tuple[str, ...],
    environment: Mapping[str, str],
    streams: list[Path],
    before: Callable[[], object],
) -> None:
    for number, path in enumerate(streams, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    # As a terminal starts a process; a suite under nohup or in the background may ignore some.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    util.spawnv_passfds = _fork_server
    sys.argv = ["mixtune", *arguments]
    before()
    from mixtune.cli import main

    main()


_spawn = util.spawnv_passfds


def _fork_server(path: bytes, arguments: list[str], descriptors: list[int]) -> int:
    """Stands in for `util.spawnv_passfds`: a fork server is forked, not started."""
    if "multiprocessing.forkserver" not in arguments[-1]:
        return _spawn(path, arguments, descriptors)
    number = os.fork()
    if number:
        return number
    try:
        for ours in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(ours, signal.SIG_DFL)
        kept = {0, 1, 2, *descriptors}
        for descriptor in {int(path.name) for path in Path("/proc/self/fd").iterdir()} - kept:
            os.closerange(descriptor, descriptor + 1)  # without an error where it is closed
        exec(arguments[-1])
    finally:
        os._exit(0)
