"""A small finished study that faults are tried on, and what it takes to look at it."""

import hashlib
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from mixtune.store.folder import Store

RUN = "from mixtune.cli import main; main()"
STUDY = {
    "name": "weather",
    "model": "base",
    "tasks": ["north"],
    "task_files": ["north.yaml", "south.yaml"],
    "ingredients": {"north": {"rows": 8}, "south": {"rows": 8}},
    "design": ["all"],
    "budget": {"steps": 2, "examples_per_step": 4},
    "train": {"rank": 16, "alpha": 4},
    "evaluate": {"validation_items": 6, "test_items": 6, "max_new_tokens": 4},
}
ADAPTER = "cells/*/adapter/adapter_model.safetensors"
MORE = "seeds=[1,2]"
LARGE = 80_000
HOSTILE = ["\x1b[31mred\x1b[0m", "[bold]x[/bold]", "a\nb", "\u202egnp.exe", "x" * 10_000, "../up"]


def environment(folder, **more):
    fixed = {"MIXTUNE_CACHE": str(folder / "cache"), "MIXTUNE_DATA_DIR": "data"}
    return {**os.environ, **fixed, "OMP_NUM_THREADS": "1", **more}


def on_one_core():
    """One thread whatever the number of workers: bits depend on threads."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def wait_there(function, stubborn):
    """In a run's process: lead a session, and wait where a function is called, also in workers.

    A stubborn one hears no SIGTERM there.
    """
    os.setsid()
    on_one_core()
    module, name = function.rsplit(".", 1)
    owner = importlib.import_module(module)
    real = getattr(owner, name)

    def waits(*arguments, **named):
        if stubborn:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        Path("reached").touch()
        while not Path("go").exists():
            time.sleep(0.02)
        return real(*arguments, **named)

    setattr(owner, name, waits)


def python(folder, *arguments, code=RUN, **more):
    """A real process with the command line."""
    command = [sys.executable, "-c", code, *arguments]
    quiet = {"capture_output": True, "text": True, "timeout": 120, "preexec_fn": on_one_core}
    return subprocess.run(command, cwd=folder, env=environment(folder), **(quiet | more))


def outcome(folder):
    """Adapters to the last bit, and answers without the time that they took."""
    study = Store(folder)
    answers = {
        row.id: study.read_table(f"{row.folder}/answers/{row.id}/predictions.parquet")
        .drop_columns(["latency"])
        .to_pylist()
        for row in study.plan()
        if row.kind == "answer"
    }
    weights = sorted(folder.rglob("*.safetensors"))
    return answers, {w.parent.parent.name: digest(w) for w in weights}, states(folder)


def workers_of(process):
    """Ids of a run's worker processes: children of the child that forks them.

    Where there is a GPU they are the run's own, the last ones.
    """
    children = _children(process.pid)
    return [worker for child in children for worker in _children(child)] or children[-1:]


def parent_of(process):
    """Id of the process that started one."""
    return int(Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")")[1].split()[1])


def _children(number):
    listed = Path(f"/proc/{number}/task/{number}/children").read_text(encoding="utf-8")
    return [int(child) for child in listed.split()]


def states(folder):
    return {unit.id: unit.state for unit in Store(folder).units().values()}


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def edit(path, old, new):
    text = Path(path).read_text(encoding="utf-8")
    assert old in text
    Path(path).write_text(text.replace(old, new), encoding="utf-8")


def only(pattern):
    return sorted(Path("runs/weather").glob(pattern))[-1]
