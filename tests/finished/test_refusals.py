"""A system that refuses: no space, no rights, no memory, a state that is held by another."""

import os
import resource
import sqlite3
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from finished_kit import ADAPTER, LARGE, MORE, environment, only, states
from process_kit import Command

from mixtune import cli
from mixtune.store import files as durable
from mixtune.store.folder import Store

WRITTEN = [
    "changes.jsonl",
    "study.yaml",
    "data.json",
    "plan.parquet",
    "adapter",
    "train.parquet",
    "run.json",
    "predictions.parquet",
    "index.html",
]


@pytest.mark.parametrize("name", [*WRITTEN, "scores"])
def test_no_space_while_writing_loses_nothing_and_the_same_command_goes_on(
    place, mixtune, kept, monkeypatch, name
):
    flush = os.fsync

    def full(handle):
        path = str(Path(f"/proc/self/fd/{handle}").readlink())
        if name in path:
            raise OSError(28, "No space left on device")
        flush(handle)

    monkeypatch.setattr(durable.os, "fsync", full)
    code, _, err = mixtune("run", "study.yaml", MORE)
    assert code == 2
    assert "cannot write: No space left on device" in err
    assert name in err
    assert "remedy: free space" in err
    assert not list(place.rglob("*.mixtune-part"))
    if name != "scores":  # answers without scores are in no table: results asks for them
        kept(more=True)
    monkeypatch.setattr(durable.os, "fsync", flush)
    assert mixtune("run", "study.yaml", MORE)[0] == 0
    assert set(states(place / "runs/weather").values()) == {"done"}
    kept(more=True)


def test_a_limit_of_the_system_reaches_the_user_from_a_worker(place, kept):
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (LARGE, LARGE))
    assert only(ADAPTER).stat().st_size > LARGE > only("state.sqlite").stat().st_size + 9999
    command = ["run", "study.yaml", MORE, "--workers", "1"]
    process = Command(place, *command, environment=environment(place), before=limit)
    _, err = process.communicate()
    assert process.returncode == 2
    assert "cannot write" in err
    assert "File too large" in err
    assert "adapter" in err
    assert "Traceback" not in err
    kept(more=True)


def test_a_folder_that_cannot_be_written_can_still_be_read(place, mixtune, kept, monkeypatch):
    replace = Path.replace

    def refuse(self, target):
        if "runs" in target.parts:
            raise OSError(30, "Read-only file system", str(self))
        return replace(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        for arguments in (["run", "study.yaml", MORE], ["report", "study.yaml"]):
            code, _, err = mixtune(*arguments)
            assert code == 2
            assert "cannot write: Read-only file system" in err
            assert "--runs-dir" in err
        kept(more=True)


@pytest.mark.parametrize("runs_dir", ["study.yaml", "study.yaml/below"])
def test_a_file_in_the_folders_place(mixtune, kept, runs_dir):
    for verb in ("run", "status"):
        code, _, err = mixtune(verb, "study.yaml", "--runs-dir", runs_dir)
        assert code == 2
        assert runs_dir in err
        assert "--runs-dir" in err
    kept()


def test_a_state_that_is_full_or_held_by_another(place, mixtune, kept, monkeypatch):
    connect = Store._connect

    def small(self):
        connection = connect(self)
        connection.execute("PRAGMA max_page_count=1")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(Store, "_connect", small)
        code, _, err = mixtune("run", "study.yaml", "seeds=[1,2,3,4,5,6,7,8,9]")
        assert (code, "database or disk is full" in err) == (2, True)
    kept()
    monkeypatch.setattr("mixtune.store.states.LOCK_TIMEOUT", 0.05)
    other = sqlite3.connect(place / "runs/weather/state.sqlite", check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    code, _, err = mixtune("status", "study.yaml")
    assert (code, "database is locked" in err, "state.sqlite" in err) == (2, True, True)
    monkeypatch.setattr("mixtune.store.states.LOCK_TIMEOUT", 30)
    threading.Timer(0.4, other.rollback).start()
    assert mixtune("status", "study.yaml")[0] == 0
    other.close()
    kept()


def test_a_run_without_memory_fails_and_is_tried_again(mixtune, kept, monkeypatch):
    def full(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("mixtune.execution.bank_training.job_of", full)
        code, _, err = mixtune("run", "study.yaml", MORE)
        assert (code, "FAILED, MemoryError" in err) == (1, True)
    with monkeypatch.context() as patch:
        patch.setattr("mixtune.execution.run_study.started", full)
        code, _, err = mixtune("run", "study.yaml", MORE)
        assert (code, "out of memory" in err, "--workers 1" in err) == (1, True, True)
    kept(more=True)
    assert mixtune("run", "study.yaml", MORE)[0] == 0


def test_a_fault_of_our_own_keeps_its_traceback_and_says_what_is_kept(mixtune, kept, monkeypatch):
    def wrong(*arguments):
        raise KeyError("nowhere")

    with monkeypatch.context() as patch:
        patch.setattr("mixtune.report.page.render", wrong)
        patch.setattr(sys, "argv", ["mixtune", "report", "study.yaml"])
        with pytest.raises(KeyError) as error:
            cli.main()
    assert "a fault of mixtune" in error.value.__notes__[0]
    assert "What is finished is kept" in error.value.__notes__[0]
    kept()
