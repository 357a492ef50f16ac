"""Fixtures of a finished study: after every fault what was finished is there to the last byte."""

import json
import re
import shutil
import signal
import sys

import pytest
import yaml
from engine_oracle import write_base
from execution_kit import pool_here
from finished_kit import STUDY, environment, python
from study_kit import TASK, write_data

from mixtune import cli
from mixtune.execution import run_study as start
from mixtune.store.folder import Store


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder with a study that was run to its end."""
    folder = tmp_path_factory.mktemp("finished")
    write_base(folder / "base", "llama")
    write_data(folder / "data")
    for name in ("north", "south"):
        (folder / f"{name}.yaml").write_text(TASK.format(name=name), encoding="utf-8")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    done = python(folder, "run", "study.yaml", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return folder


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """A copy of it to break, the current folder."""
    place = tmp_path / "place"
    shutil.copytree(finished, place)
    monkeypatch.chdir(place)
    for name, value in environment(place).items():
        monkeypatch.setenv(name, value)
    return place


@pytest.fixture
def mixtune(place, monkeypatch, capsys):
    """A verb in this process: exit code, standard output, standard error; no worker processes."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["mixtune", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        out = capsys.readouterr()
        for text in (out.out, out.err):
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]", text)
            assert "Traceback" not in text
        return stop.value.code or 0, out.out, out.err

    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(start, "run_pool", pool_here)
    monkeypatch.setattr(start, "start_fork_server", lambda: None)
    monkeypatch.setattr(start, "available_cores", lambda: 1)
    yield call
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def kept(place, mixtune):
    """Call it to check that what was finished at first is there, unchanged, and verifies."""
    study = Store(place / "runs" / "weather")
    units = study.units()
    before = mixtune("results", "study.yaml", "--json")[1]
    assert {unit.state for unit in units.values()} == {"done"}
    assert len(json.loads(before)) == 3 * 2 * 3, (
        "systems × tasks × forms, the lenient one among them"
    )

    def check(more=False):
        now = study.units()
        assert {unit: now[unit] for unit in units} == units
        assert [study.damage(unit) for unit in now.values() if unit.state == "done"] == [[]] * sum(
            unit.state == "done" for unit in now.values()
        )
        code, out, _ = mixtune("results", "study.yaml", "--json")
        assert code == 0
        ids = {(row["system"], row["task"]) for row in json.loads(before)}
        rows = [row for row in json.loads(out) if (row["system"], row["task"]) in ids]
        assert (rows == json.loads(before)) if more else (out == before)

    return check
