"""Workers: processes that stay alive for a case and measure one thing each time they are told to.

Knows: starting a process, JSON lines both ways, its end. Does not know: what is measured.

    parent                          worker
    ------                          ------
    Worker(name, arguments)   -->   imports, loads, warms up
                              <--   {"ready": facts}
    go(**what)                -->   {…}
                              <--   {"reply": numbers}      … once per repeat; idle in between
    close()                   -->   (end of input)

Libraries print to standard output, so a worker keeps that file to itself and lets everything else
go to its log.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from bench.errors import BenchError, NotThere

_LOG_LINES = 12
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONWARNINGS": "ignore",
}
"""Nothing is fetched while something is timed."""

Facts = dict[str, Any]


class Channel:
    """A worker's side: says that it is ready, waits for the next go, replies."""

    def __init__(self, orders: IO[str], answers: IO[str]) -> None:
        self._orders = orders
        self._answers = answers

    @classmethod
    def take_over(cls) -> "Channel":
        """The channel of this process; what it prints from now on goes to standard error."""
        answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        return cls(sys.stdin, answers)

    def ready(self, **facts: Any) -> None:  # noqa: ANN401 - any JSON value
        """Everything that is not timed is done."""
        self._say({"ready": facts})

    def next(self) -> Facts | None:
        """What to measure next, or None when there is nothing more."""
        line = self._orders.readline()
        order: Facts | None = json.loads(line) if line.strip() else None
        return order

    def reply(self, **numbers: Any) -> None:  # noqa: ANN401 - any JSON value
        """What was measured."""
        self._say({"reply": numbers})

    def refuse(self, error: NotThere) -> None:
        """This worker cannot measure what it is for."""
        self._say({"not-there": str(error)})

    def _say(self, message: Facts) -> None:
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()


class Worker:
    """The parent's side of one process; a context manager that ends it."""

    def __init__(self, name: str, arguments: Mapping[str, Any], log: Path) -> None:
        """Start it and wait until it is ready.

        Raises:
            BenchError: it ended instead. NotThere: it needs what the engine does not have.
        """
        self.name = name
        self._log = log
        self._stream = log.open("a", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker", name, json.dumps(arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stream,
            text=True,
            env=os.environ | OFFLINE,
        )
        self.facts = self._hear("ready")

    def go(self, **what: Any) -> Facts:  # noqa: ANN401 - any JSON value
        """Measure once.

        Raises:
            BenchError: the worker ended instead.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(what) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise self._died() from error
        return self._hear("reply")

    def close(self) -> None:
        """Let it end; ended by force when it does not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stream.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _hear(self, wanted: str) -> Facts:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._died()
        message: Facts = json.loads(line)
        if "not-there" in message:
            self.close()
            raise NotThere(str(message["not-there"]))
        if wanted not in message:
            raise BenchError(f"worker {self.name}: found {sorted(message)}, wanted {wanted!r}")
        facts: Facts = message[wanted]
        return facts

    def _died(self) -> BenchError:
        self.close()
        tail = self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        return BenchError(f"worker {self.name} ended; its last lines:\n" + "\n".join(tail))
