"""A study run to its end in this process: no interpreter to start, no workers to wait for.

Knows: the command line, which functions start processes. Does not know: what a study holds.
For tests of what comes after a run; those of processes, kills and signals start real ones.
"""

import contextlib
import io
import sys
from pathlib import Path

import pytest
import yaml
from engine_oracle import write_base
from execution_kit import pool_here

from mixtune import cli
from mixtune.execution import run_study


def call(folder: Path, *arguments: object) -> str:
    """Run one verb with `folder` as working directory; returns what it printed.

    Raises:
        AssertionError: it did not exit with 0.
    """
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.chdir(folder)
        patch.setenv("MIXTUNE_CACHE", str(folder / "cache"))
        patch.setattr(sys, "argv", ["mixtune", *map(str, arguments)])
        without_processes(patch)
        with pytest.raises(SystemExit) as stop:
            cli.main()
            raise SystemExit(0)
    assert not stop.value.code, out.getvalue()
    return out.getvalue()


def without_processes(patch: pytest.MonkeyPatch) -> None:
    """Let a run do its portions in this process, one after the other, on one thread."""
    patch.setattr(run_study, "run_pool", pool_here)
    patch.setattr(run_study, "start_fork_server", lambda: None)
    patch.setattr(run_study, "available_cores", lambda: 1)


def finished_study(folder: Path, study: dict[str, object], *options: str) -> Path:
    """Write a study of a tiny random base model into a folder and run it; returns the folder."""
    base = write_base(folder / "base", "llama")
    text = yaml.safe_dump({**study, "model": str(base)})
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    call(folder, "run", "study.yaml", *options)
    return folder
