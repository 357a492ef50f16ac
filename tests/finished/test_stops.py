"""Two runs at once, and a run that is stopped: told, given back, ended the same."""

import contextlib
import json
import os
import shutil
import signal
import time
from functools import partial

import pytest
from finished_kit import MORE, environment, outcome, parent_of, states, wait_there, workers_of
from process_kit import Command


@contextlib.contextmanager
def stopped_at(place, function, *arguments, stubborn=False):
    """A run in a session of its own that waits where it first calls a function."""
    command = ["run", "study.yaml", "--workers", "1", *arguments]
    waits = partial(wait_there, function, stubborn)
    process = Command(place, *command, environment=environment(place), before=waits)
    deadline = time.monotonic() + 60
    try:
        while not (place / "reached").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline, f"{function} was not reached in a minute"
            time.sleep(0.02)
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_second_run_is_told_who_is_at_work_and_harms_nothing(place, mixtune, kept):
    with stopped_at(place, "mixtune.execution.bank_training.job_of", MORE) as first:
        code, _, err = mixtune("run", "study.yaml", MORE)
        assert code == 2
        assert f"found:  process {first.pid}, since 20" in err
        assert "wait for it" in err
        code, out, _ = mixtune("status", "study.yaml")
        assert code == 0
        assert "running" in out
        assert mixtune("results", "study.yaml")[0] == 0
        (place / "go").touch()
        _, errors = first.communicate(timeout=60)
        assert first.returncode == 0, errors
    assert set(states(place / "runs/weather").values()) == {"done"}
    kept(more=True)


STOPS = [
    ("mixtune.planning.plan.load_corpus", signal.SIGINT, True),
    ("mixtune.execution.bank_training.job_of", signal.SIGINT, True),
    ("mixtune.execution.worker.predict_queries", signal.SIGTERM, True),
    ("mixtune.execution.bank_training.job_of", signal.SIGHUP, True),
    ("mixtune.results.study_results.score", signal.SIGHUP, False),
    ("mixtune.report.page.render", signal.SIGINT, False),
]


@pytest.mark.parametrize(("function", "number", "anew"), STOPS, ids=lambda x: str(x))
def test_stopped_anywhere_it_says_how_to_go_on_and_ends_the_same(
    place, finished, mixtune, function, number, anew
):
    runs = place / "runs" / "weather"
    if anew:
        shutil.rmtree(runs)
    for path in runs.rglob("scores"):
        shutil.rmtree(path)
    with stopped_at(place, function) as process:
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert out == ""
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("stopped; what is finished is kept. Go on with: mixtune")
    assert "running" not in (states(runs).values() if runs.exists() else ())
    assert not list(runs.rglob("*.mixtune-part"))
    assert mixtune("run", "study.yaml")[0] == 0
    assert outcome(runs) == outcome(finished / "runs" / "weather")


def test_a_second_ctrl_c_ends_at_once_and_consistently(place, finished, mixtune):
    runs = place / "runs" / "weather"
    shutil.rmtree(runs)
    with stopped_at(place, "mixtune.execution.bank_training.job_of", stubborn=True) as process:
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None, "the worker was to be asked first"
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate(timeout=4)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert mixtune("run", "study.yaml")[0] == 0
    assert outcome(runs) == outcome(finished / "runs" / "weather")


def test_a_worker_that_somebody_ended_is_an_error(place, mixtune, kept):
    with stopped_at(place, "mixtune.execution.bank_training.job_of", MORE) as process:
        (worker,) = workers_of(process)
        os.kill(worker, signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "a worker process ended early" in err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    assert "running" not in states(place / "runs/weather").values()
    kept(more=True)


def test_a_fork_server_that_somebody_ended_changes_nothing_when_all_is_done(place, finished):
    shutil.rmtree(place / "runs" / "weather")
    with stopped_at(place, "mixtune.execution.bank_training.job_of") as process:
        (worker,) = workers_of(process)
        os.kill(parent_of(worker), signal.SIGKILL)  # it waits for its children's exit codes
        (place / "go").touch()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert outcome(place / "runs/weather") == outcome(finished / "runs/weather")


def test_status_knows_that_a_killed_run_is_not_running(place, mixtune):
    with stopped_at(place, "mixtune.execution.bank_training.job_of", MORE) as process:
        live = json.loads(mixtune("status", "study.yaml", "--json")[1])
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)
    assert "running" in {run["state"] for run in live["runs"]}
    dead = json.loads(mixtune("status", "study.yaml", "--json")[1])
    assert {run["state"] for run in dead["runs"]} == {"done", "planned"}
    assert live["cut_off"] == []
    assert len(dead["cut_off"]) == 1
    assert "1 unit cut off: no process runs this study" in mixtune("status", "study.yaml")[1]
